"""The small Llama of lm_tiny as an OLMo 3: the first of two layers has a window of 32; a short run.

Cost: 80 steps of lm_tiny, about a minute on 2 CPU cores. Its bits per byte have not been measured.
"""

from bigmodel_jax.config import Config
from bigmodel_jax.models import Olmo3Config
from configs import lm_tiny


def get_config() -> Config:
    return lm_tiny.short(
        Olmo3Config(**vars(lm_tiny.get_config().model) | {"qk_norm": True, "window": 32, "global_every": 2})
    )
