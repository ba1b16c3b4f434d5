"""The small Llama of lm_tiny as a GLM-4, with half of each head turned and norms on both sides, for a short run.

Cost: under a minute on 2 CPU cores. Reaches FIGURE bits per byte on the addresses after 2000 (`xz -9`: 2.25 alone).
"""

from bigmodel_jax.config import Config
from bigmodel_jax.models import Glm4Config
from configs import lm_tiny


def get_config() -> Config:
    return lm_tiny.short(Glm4Config(**vars(lm_tiny.get_config().model) | {"rotary_dim": 24}))
