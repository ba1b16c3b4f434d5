"""A watched step measures on eight devices what it measures on one."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.training import watch
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import make_train_step

CONFIG = Config(
    LlamaConfig.tiny(), NextToken(), DataConfig(), train=TrainConfig(steps=9, batch_size=16, microbatches=2)
)


def batch() -> dict:
    tokens = np.random.default_rng(0).integers(0, 64, (16, 17)).astype(np.int32)
    weights = (np.arange(16) < np.arange(16)[:, None] + 1).astype(np.float32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def seen(parallel: ParallelConfig, num: int) -> dict:
    config = dataclasses.replace(CONFIG, parallel=parallel)
    mesh = sharding.make_mesh(parallel, jax.devices()[:num])
    _, sums = make_train_step(config, mesh, watched=True)(init_state(config, mesh), batch())
    return watch.values(sharding.to_host(sums))


@functools.cache
def alone() -> dict:
    return seen(ParallelConfig(data=1), 1)


@pytest.mark.parametrize(
    "parallel",
    [
        pytest.param(ParallelConfig(data=8), id="data", marks=pytest.mark.exhaustive),
        pytest.param(ParallelConfig(data=1, fsdp=8), id="fsdp", marks=pytest.mark.exhaustive),
        pytest.param(ParallelConfig(data=2, fsdp=2, tensor=2), id="data-fsdp-tensor", marks=pytest.mark.slow),
    ],
)
def test_numbers_are_those_of_one_device(parallel):
    found = seen(parallel, 8)
    assert found.keys() == alone().keys()
    for name, values in alone().items():
        # The noise is a difference of norms, which loses digits.
        rtol = 1e-3 if "gradient_" in name or "noise" in name else 2e-5
        np.testing.assert_allclose(found[name], values, rtol=rtol, err_msg=name)


@pytest.mark.exhaustive
def test_under_pmap_the_devices_are_the_pieces():
    """The gradients of devices are those of microbatches in another split, so the noise is known
    without microbatches."""
    train = dataclasses.replace(CONFIG.train, microbatches=1)
    parallel = ParallelConfig(data=8, strategy="pmap")
    config = dataclasses.replace(CONFIG, train=train, parallel=parallel)
    mesh = sharding.make_mesh(parallel, jax.devices())
    _, sums = make_train_step(config, mesh, watched=True)(init_state(config, mesh), batch())
    found = watch.values(sharding.to_host(sums))
    assert found["watch/gradient_variance"] > 0
    np.testing.assert_allclose(found["watch/gradients/layers/attn"], alone()["watch/gradients/layers/attn"], rtol=2e-5)
