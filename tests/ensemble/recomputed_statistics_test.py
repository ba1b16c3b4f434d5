"""Batch norm's statistics of averaged weights are the means over the training batches, whatever
they were before."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from bigmodel_jax.config import Config
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.ensemble import statistics
from bigmodel_jax.models import MODELS, ModelConfig, from_nnx
from bigmodel_jax.objectives import Classification


class Net(nnx.Module):
    """Batch norm on what is fed, so that its statistics are the data's own."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(5, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, image):
        return self.head(self.dropout(self.norm(image)))


@dataclasses.dataclass(frozen=True)
class NetConfig(ModelConfig):
    def make(self):
        return from_nnx(Net, inputs=lambda batch: (batch["image"],))


def batches(n=4, rows=16):
    rng = np.random.default_rng(0)
    for scale in range(1, n + 1):
        image = (50 + scale * rng.standard_normal((rows, 5))).astype(np.float32)
        yield {"image": image, "label": np.arange(rows) % 3, "weights": np.ones(rows, np.float32)}


def config_of(model):
    return Config(model, Classification(), DataConfig(), parallel=ParallelConfig(data=1))


def test_they_are_the_mean_over_batches_of_each_batchs_own():
    config = config_of(NetConfig())
    mesh, model = sharding.make_mesh(config.parallel, jax.devices()[:1]), config.make_model()
    weights = model.init(jax.random.key(0))
    assert statistics.renewed_by_batches(config)
    found, names = statistics.recomputed(config, mesh, weights, batches())
    flat, before = params.paths(found), params.paths(weights)
    wanted = {
        "mean": np.mean([b["image"].mean(0) for b in batches()], axis=0),
        "var": np.mean([b["image"].var(0) for b in batches()], axis=0),
    }
    assert len(names) == 2
    for path in names:
        np.testing.assert_allclose(flat[path], wanted[path.split("/")[-1]], rtol=1e-3)
    for path in before.keys() - set(names):
        np.testing.assert_array_equal(flat[path], before[path])
    other = params.from_paths(before | {path: before[path] + 7.0 for path in names})
    again, _ = statistics.recomputed(config, mesh, other, batches())
    for path in names:
        np.testing.assert_array_equal(params.paths(again)[path], flat[path], "what stood there before does not count")


def test_models_without_them_have_nothing_to_recompute():
    assert not statistics.renewed_by_batches(config_of(MODELS["mlp"].tiny()))


def test_a_statistic_that_is_no_running_average_is_refused_in_one_line(monkeypatch):
    config = config_of(NetConfig())
    mesh, model = sharding.make_mesh(config.parallel, jax.devices()[:1]), config.make_model()

    def squared(config, weights, batch, rng):
        return {
            path: x**2 for path, x in params.paths(params.of_kind(weights, model.spec, "statistic")).items() if x.ndim
        }

    monkeypatch.setattr(statistics, "_updates", squared)
    with pytest.raises(ValueError, match="no running average") as error:
        statistics.recomputed(config, mesh, model.init(jax.random.key(0)), batches())
    assert "\n" not in str(error.value)
