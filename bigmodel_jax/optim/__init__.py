"""Turns an `OptimConfig` into an `Optimizer`: update rule, schedule, clipping, average
and groups.
"""

from bigmodel_jax.optim.config import OptimConfig
from bigmodel_jax.optim.groups import Group
from bigmodel_jax.optim.optimizer import Optimizer, clip, num_updates
from bigmodel_jax.optim.schedules import PlateauConfig, make_schedule

__all__ = ["Group", "OptimConfig", "Optimizer", "PlateauConfig", "clip", "make_schedule", "num_updates"]
