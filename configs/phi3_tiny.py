"""The small Llama of lm_tiny as a Phi-3: a window, and RoPE on half of each head; a short run.

Cost: 80 steps of lm_tiny, about a minute on 2 CPU cores. Its bits per byte have not been measured.
"""

from bigmodel_jax.config import Config
from bigmodel_jax.models import Phi3Config
from configs import lm_tiny


def get_config() -> Config:
    return lm_tiny.short(Phi3Config(**vars(lm_tiny.get_config().model) | {"window": 128, "rotary_dim": 24}))
