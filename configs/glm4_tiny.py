"""The small Llama of lm_tiny as a GLM-4, with half of each head turned and norms on both sides, for a short run.

Cost: 80 steps of lm_tiny, about a minute on 2 CPU cores. Its bits per byte are not measured yet.
"""

from bigmodel_jax.config import Config
from bigmodel_jax.models import Glm4Config
from configs import lm_tiny


def get_config() -> Config:
    return lm_tiny.short(Glm4Config(**vars(lm_tiny.get_config().model) | {"rotary_dim": 24}))
