"""What a step does once, whatever the number of pieces that its batch is cut into."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from grids import few
from text_axes import axes

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import DeepseekConfig, MixtralConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import make_train_step

ROWS, LENGTH = 8, 16
SGD = OptimConfig(name="sgd", lr=0.1, betas=(0.0, 0.0), clip=0.0, weight_decay=0.0, schedule="constant")
# What is cut -> the config's part that cuts it, and the devices that it takes.
PIECES = {
    "microbatches": ({"train": TrainConfig(steps=4, batch_size=ROWS, microbatches=4)}, 1),
    "data": ({"parallel": ParallelConfig(data=4)}, 4),
    "pmap": ({"parallel": ParallelConfig(data=4, strategy="pmap")}, 4),
    "deterministic": ({"parallel": ParallelConfig(data=2, deterministic=True, deterministic_groups=8)}, 2),
    "slices": ({"parallel": ParallelConfig(data=4, slices=2, slice_gradients="bfloat16")}, 4),
    "1f1b": ({"parallel": ParallelConfig(stage=2, pipeline_microbatches=4, pipeline_schedule="1f1b")}, 2),
}


def batch():
    """Rows of unequal length, padding behind, and targets whose number is no share of the
    tokens'."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 64, (ROWS, LENGTH + 1)).astype(np.int32)
    held = np.arange(LENGTH) < np.arange(2, 2 + ROWS)[:, None]
    weights = held & (rng.random((ROWS, LENGTH)) < 0.5)
    weights[:, 0] = True
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH))
    rows = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "positions": positions}
    return rows | {"weights": weights.astype(np.float32), "segment_ids": held.astype(np.int32)}


def step(model, change=None, devices=1, optim=SGD):
    """(trained, statistics, metrics) after one step, by path, on the host."""
    train = TrainConfig(steps=4, batch_size=ROWS)
    config = Config(model, NextToken(), DataConfig(), optim=optim, parallel=ParallelConfig(data=1), train=train)
    config = dataclasses.replace(config, **(change or {}))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:devices])
    rows = {
        k: jax.device_put(v, sharding.batch_sharding(mesh, config.parallel.rules, axes(v))) for k, v in batch().items()
    }
    state, sums = make_train_step(config, mesh)(init_state(config, mesh), rows)
    state, sums = sharding.to_host((state, sums))
    return params.paths(state.params), params.paths(state.frozen), {k: float(v.compute()) for k, v in sums.items()}


def deepseek():
    tiny = dataclasses.replace(DeepseekConfig.tiny(), num_mtp_layers=0, bias_update_rate=0.01, balance_loss=0.01)
    return dataclasses.replace(tiny, num_layers=2, num_dense_layers=0)


@functools.cache
def deepseek_step(pieces: str = ""):
    """The step of the batch in one piece, or cut into `pieces`; each is computed once for all
    tests."""
    return step(deepseek(), *PIECES.get(pieces, ()))


def mixtral():
    return dataclasses.replace(MixtralConfig.tiny(), router_z_loss=0.1, load_balancing_loss=0.0, num_layers=2)


# Sums over pieces in time, over devices, and over stages; each of the others compiles for ten
# seconds.
QUICK = ("microbatches", "data")


def cut(*names: str):
    marked = few(names, *QUICK)
    return pytest.mark.parametrize("pieces", marked)


@pytest.mark.slow
@pytest.mark.few("data")
@cut(*PIECES)
def test_routing_biases_move_once_a_step_by_the_load_of_the_whole_batch(pieces):
    whole, (_, biases, metrics) = deepseek_step(), deepseek_step(pieces)
    for path, bias in whole[1].items():
        assert set(np.round(np.abs(bias), 6).ravel()) <= {0.0, np.float32(0.01)}, "one update of the rate"
        assert bias.any(), "the load is not even, so some bias moves"
        np.testing.assert_array_equal(biases[path], bias)
    assert not any("statistic" in name for name in metrics), "loads are no metrics"


@pytest.mark.slow
@pytest.mark.few("data")  # the z-loss below has sums over pieces in time
@cut(*[p for p in PIECES if p != "slices"])  # those round gradients
def test_the_balance_of_sequences_has_the_gradient_of_the_whole_batch(pieces):
    whole, (trained, _, metrics) = deepseek_step(), deepseek_step(pieces)
    for path, x in whole[0].items():
        np.testing.assert_allclose(trained[path], x, atol=2e-6, err_msg=path)
    np.testing.assert_allclose(metrics["balance_loss"], whole[2]["balance_loss"], rtol=1e-5)


@pytest.fixture(scope="module")
def mixtral_step():
    return step(mixtral())


@pytest.mark.slow
@pytest.mark.parametrize("pieces", few(("microbatches", "pmap", "deterministic", "1f1b"), "microbatches"))
def test_the_z_loss_has_the_gradient_of_the_whole_batch(mixtral_step, pieces):
    (one, _, metrics), (parts, _, metrics_of_parts) = mixtral_step, step(mixtral(), *PIECES[pieces])
    for path, x in one.items():
        np.testing.assert_allclose(parts[path], x, atol=3e-6, err_msg=path)
    np.testing.assert_allclose(metrics_of_parts["router_z_loss"], metrics["router_z_loss"], rtol=1e-5)
