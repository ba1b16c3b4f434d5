"""Every layout gives the one-device run: losses and parameters after 5 steps, and each array lies where the rules say.

float32 sums in another order differ in the last bits; 5 AdamW steps at lr 1e-2 grow that to at most about 1e-5 of a
parameter (Adam divides by small second moments), which is the tolerance.
"""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.models.cnn import CNNConfig
from bigmodel_jax.objectives import Classification, NextToken
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import make_train_step

STEPS, ROWS = 5, 16
LAYOUTS = {
    "dp": ParallelConfig(data=8),
    "fsdp": ParallelConfig(data=1, fsdp=8),
    "tp": ParallelConfig(data=4, tensor=2),
    "fsdp_tp": ParallelConfig(data=2, fsdp=2, tensor=2),
    "pmap": ParallelConfig(data=8, strategy="pmap"),
}


def text_batch(step: int) -> dict:
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, 64, (ROWS, 17)).astype(np.int32)
    segments = np.sort(rng.integers(1, 4, (ROWS, 16)), axis=1).astype(np.int32)
    starts = np.maximum.accumulate(np.where(np.diff(segments, prepend=0) > 0, np.arange(16), 0), axis=1)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segments,
        "positions": (np.arange(16) - starts).astype(np.int32),
        "weights": (rng.random((ROWS, 16)) < 0.8).astype(np.float32),
    }


def image_batch(step: int) -> dict:
    rng = np.random.default_rng(step)
    return {
        "image": rng.random((ROWS, 8, 8, 1), np.float32),
        "label": rng.integers(0, 10, ROWS).astype(np.int32),
        "weights": np.ones(ROWS, np.float32),
    }


CASES = {
    "llama": (LlamaConfig.tiny(), NextToken(), text_batch),
    "cnn_nnx": (CNNConfig.tiny(), Classification(), image_batch),
    "cnn_linen": (dataclasses.replace(CNNConfig.tiny(), door="linen"), Classification(), image_batch),
}


# The second way to write the same network: every test of it is slow.
every_case = pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] if c == "cnn_linen" else []) for c in CASES]
)


def config_of(case: str, parallel: ParallelConfig) -> Config:
    model, objective, _ = CASES[case]
    return Config(
        model=model,
        objective=objective,
        data=DataConfig(),
        optim=OptimConfig(lr=1e-2, clip=0.5),
        parallel=parallel,
        train=TrainConfig(steps=STEPS, batch_size=ROWS),
    )


def place(batch: dict, mesh, rules) -> dict:
    return {k: jax.device_put(v, sharding.batch_sharding(mesh, rules, v.ndim)) for k, v in batch.items()}


def run(case: str, parallel: ParallelConfig, num_devices: int):
    """(losses, gradient norms, final state) of 5 steps."""
    config = config_of(case, parallel)
    mesh = sharding.make_mesh(parallel, jax.devices()[:num_devices])
    state, step = init_state(config, mesh), make_train_step(config, mesh)
    losses, norms = [], []
    for i in range(STEPS):
        state, sums = step(state, place(CASES[case][2](i), mesh, parallel.rules))
        losses.append(float(sums["loss"].compute()))
        norms.append(float(sums["grad_norm"].compute()))
    return np.array(losses), np.array(norms), state


@pytest.fixture(scope="module")
def one_device():
    done = {}

    def get(case):
        if case not in done:
            losses, norms, state = run(case, ParallelConfig(data=1), 1)
            done[case] = losses, norms, sharding.to_host((state.params, state.frozen))
        return done[case]

    return get


@pytest.mark.parametrize("layout", LAYOUTS)
@every_case
def test_layout_equals_one_device(case, layout, one_device):
    losses, norms, (trained, frozen) = one_device(case)
    got_losses, got_norms, state = run(case, LAYOUTS[layout], 8)
    np.testing.assert_allclose(got_losses, losses, rtol=2e-6)
    np.testing.assert_allclose(got_norms, norms, rtol=1e-5)
    for path, leaf in params.paths(state.params).items():
        np.testing.assert_allclose(leaf, params.paths(trained)[path], atol=2e-5, err_msg=path)
    for path, leaf in params.paths(state.frozen).items():
        np.testing.assert_allclose(leaf, params.paths(frozen)[path], atol=1e-5, err_msg=path)
    assert losses[-1] != losses[0]


@every_case
@pytest.mark.parametrize("layout", ["dp", "fsdp", "tp", "fsdp_tp"])
def test_live_arrays_lie_where_the_rules_say(case, layout):
    """Every parameter and both its Adam moments, before and after a step."""
    parallel = LAYOUTS[layout]
    config = config_of(case, parallel)
    mesh = sharding.make_mesh(parallel)
    state = init_state(config, mesh)
    want = params.paths(sharding.shardings(config.model.make().spec, mesh, parallel.rules))
    for _ in range(2):
        adam = state.opt_state[0]
        for tree in (state.params, adam.mu, adam.nu):
            for path, leaf in params.paths(tree).items():
                assert leaf.sharding.is_equivalent_to(want[path], leaf.ndim), path
        assert state.step.sharding.is_equivalent_to(sharding.replicated(mesh), 0)
        state, _ = make_train_step(config, mesh)(state, place(CASES[case][2](0), mesh, parallel.rules))


def test_sharded_leaves_of_the_decoder_by_hand():
    """A few leaves written out, so that the rules themselves are held against something."""
    config = config_of("llama", LAYOUTS["fsdp_tp"])
    state = init_state(config, sharding.make_mesh(config.parallel))
    got = {path: leaf.sharding.spec for path, leaf in params.paths(state.params).items()}
    assert got["layers/attn/q"] == P("stage", "fsdp", "tensor", None)
    assert got["layers/mlp/down"] == P("stage", "tensor", "fsdp")
    assert got["embed/table"] == P("tensor", "fsdp")
    shard = params.paths(state.params)["layers/attn/q"].addressable_shards[0].data
    assert shard.shape == (2, 16, 2, 8)
