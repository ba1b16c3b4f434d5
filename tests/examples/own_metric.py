"""A metric of one's own, and those that ship by name, each for the groups of a column too; trains
in seconds.

uv run launch.py train tests/examples/own_metric.py --data.source.train people.csv --data.group_by
town
"""

import jax
import jax.numpy as jnp

from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, TrainConfig
from bigmodel_jax.data import TabularData
from bigmodel_jax.data.tabular import Tables
from bigmodel_jax.models import LinearConfig
from bigmodel_jax.objectives import Classification


def brier(out, batch):
    """Squared distance of the probabilities and the label, a value a row (Brier 1950)."""
    wanted = jax.nn.one_hot(batch["label"], out.value.shape[-1])
    return jnp.sum(jnp.square(jax.nn.softmax(out.value) - wanted), axis=-1)


def get_config() -> Config:
    return Config(
        model=LinearConfig(feature_shape=(2,), num_outputs=2),
        objective=Classification(),
        data=TabularData(source=Tables(train="people.csv"), features=("x", "y"), target=("bought",), num_classes=2),
        train=TrainConfig(steps=20, batch_size=16),
        eval=EvalConfig(every=10, metrics=(brier, "mean_iou")),
        checkpoint=CheckpointConfig(best_metric="eval/brier"),
    )
