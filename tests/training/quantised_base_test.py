"""QLoRA: steps of adapters beside a base in 4 bits, on one device and on several, and what they
hold in memory."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import TextData
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.models.adapters import Lora
from bigmodel_jax.models.bases import BaseConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.plan.worker import abstract_batch
from bigmodel_jax.training.state import abstract_constants, abstract_state, init_constants, init_state
from bigmodel_jax.training.step import make_train_step

NF4, HALF = BaseConfig("nf4", 16, double=True, tables="bfloat16"), BaseConfig("bfloat16")
TINY = LlamaConfig(
    vocab_size=64, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=64, max_seq_len=16
)
DEEP = dataclasses.replace(TINY, num_layers=16, embed_dim=128, num_kv_heads=4, head_dim=32, mlp_dim=512)
BFLOAT16 = Policy("bfloat16", "bfloat16")
LAYOUTS = {
    "fsdp": (ParallelConfig(data=2, fsdp=4), 8),
    "fsdp and tensor": (ParallelConfig(data=1, fsdp=4, tensor=2), 8),
}


def config_of(model=TINY, base=NF4, parallel=None, precision=None) -> Config:
    return Config(
        model,
        NextToken(),
        TextData(seq_len=16),
        optim=OptimConfig("sgd", lr=0.5, schedule="constant"),
        parallel=parallel or ParallelConfig(data=1),
        train=TrainConfig(steps=4, batch_size=8),
        precision=precision or Policy(),
        adapters=Lora(rank=4, base=base),
    )


def steps(config: Config, devices: int) -> tuple[list[float], dict[str, np.ndarray]]:
    """(losses, adapters) of three steps; the first two give both factors of each adapter a
    gradient."""
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:devices])
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 64, (8, 17)).astype(np.int32)
    lengths = rng.integers(4, 17, 8)[:, None]
    ones = np.ones((8, 16), np.int32)
    rows = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "positions": np.cumsum(ones, 1, dtype=np.int32) - 1}
    rows |= {"segment_ids": ones, "weights": (np.arange(16) < lengths).astype(np.float32)}
    place = functools.partial(sharding.batch_sharding, mesh, config.parallel.rules, ("seq",))
    batch = {name: jax.device_put(x, place()) for name, x in rows.items()}
    state, fixed, losses = init_state(config, mesh), init_constants(config, mesh), []
    step = make_train_step(config, mesh)
    for _ in range(3):
        state, found = step(state, batch, fixed)
        losses.append(float(found["loss"].compute()))
    return losses, params.paths(sharding.to_host(state.params))


@pytest.fixture(scope="module")
def alone():
    return steps(config_of(), 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", [pytest.param("fsdp", marks=pytest.mark.exhaustive), "fsdp and tensor"])
def test_steps_on_a_mesh_are_those_of_one_device(alone, layout):
    parallel, devices = LAYOUTS[layout]
    losses, adapters = steps(config_of(parallel=parallel), devices)
    assert alone[0][2] < alone[0][0] - 0.01
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
    for path, x in adapters.items():
        np.testing.assert_allclose(x, alone[1][path], atol=3e-6, err_msg=path)
    assert all(np.abs(x).max() > 0 for x in adapters.values())


def compiled(config: Config):
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    args = abstract_state(config, mesh), abstract_batch(config, mesh), abstract_constants(config, mesh)
    return args, make_train_step(config, mesh).lower(*args).compile()


def size(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "precision"),
    [(NF4, BFLOAT16), pytest.param(HALF, Policy(), marks=pytest.mark.exhaustive)],
    ids=["nf4", "bfloat16"],
)
def test_a_step_holds_the_base_as_it_is_stored_and_no_copy_of_it(base, precision):
    """The step's arguments are the base, the adapters and their moments. Its temporaries are
    smaller than the base's matrices in the compute dtype, because each pass makes these one layer
    at a time."""
    config = config_of(DEEP, base, precision=precision)
    config = dataclasses.replace(config, train=TrainConfig(steps=4, batch_size=1), data=TextData(seq_len=4))
    (state, batch, constants), step = compiled(config)
    usage = step.memory_analysis()
    assert usage.argument_size_in_bytes < 1.05 * (size(state) + size(batch) + size(constants)) + 10_000
    assert size(state) < 3 * 4 * sum(x.size for x in jax.tree.leaves(state.params)) + 1000
    matrices = params.of_kind(DEEP.make().spec["layers"], DEEP.make().spec["layers"], "trained")
    dense = params.count(matrices) * (2 if precision == BFLOAT16 else 4)
    assert usage.temp_size_in_bytes < dense / 3
