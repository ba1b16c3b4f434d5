"""The small Llama of lm_tiny as a GLM-4: RoPE on half of each head, norms on both sides; a short
run.

Cost: 80 steps of lm_tiny, about a minute on 2 CPU cores. Its bits per byte have not been measured.
"""

from bigmodel_jax.config import Config
from bigmodel_jax.models import Glm4Config
from configs import lm_tiny


def get_config() -> Config:
    return lm_tiny.short(Glm4Config(**vars(lm_tiny.get_config().model) | {"rotary_dim": 24}))
