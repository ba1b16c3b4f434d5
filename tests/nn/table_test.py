"""A lookup that exchanges rows equals one in the whole table, on every layout, and moves nothing
but those rows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.nn import linear, table

B, T, D, V = 8, 4, 16, 96
# By numpy: JAX would compile, in every process that collects tests.
RNG = np.random.default_rng(0)
TABLE = jnp.asarray(np.float32(RNG.standard_normal((V, D))))
IDS = RNG.integers(0, V // 4, (B, T))  # so that some come up more than once
IDS[0] = [0, V // 2 - 1, V // 2, V - 1]  # the first and last rows of two parts
IDS = jnp.asarray(np.int32(IDS))
DX = jnp.asarray(np.float32(RNG.standard_normal((B, T, D))))
LAYOUTS = {
    "fsdp": {"data": 1, "fsdp": 8},
    "fsdp_dp": {"data": 2, "fsdp": 4},
    "fsdp_tp": {"data": 2, "fsdp": 2, "tensor": 2},
    "fsdp_seq": {"data": 1, "fsdp": 2, "seq": 2, "tensor": 2},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_value_and_gradient_equal_a_lookup_in_the_whole_table(layout):
    def loss(t, look):
        return jnp.sum(look(t, IDS) * DX)

    want = jax.value_and_grad(loss)(TABLE, lambda t, ids: t[ids])
    with sharding.use(sharding.make_mesh(ParallelConfig(**LAYOUTS[layout])), Rules()):
        got = jax.jit(jax.value_and_grad(lambda t: loss(t, table.lookup)))(TABLE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_only_large_tables_with_more_rows_than_tokens_stay_where_they_are():
    mesh = sharding.make_mesh(ParallelConfig(data=1, fsdp=8))
    ids = jax.ShapeDtypeStruct((8, 1024), jnp.int32)
    large, few = (jax.ShapeDtypeStruct((n, 4096), jnp.bfloat16) for n in (128_256, 1024))
    assert not table.exchange_is_cheaper(large, ids), "on one device"
    with sharding.use(mesh, Rules()):
        assert table.exchange_is_cheaper(large, ids)
        assert not table.exchange_is_cheaper(few, ids), "fewer rows than a device has tokens"
        assert not table.exchange_is_cheaper(large, jax.ShapeDtypeStruct((1, 1), jnp.int32)), "generation: one row"
        assert not table.exchange_is_cheaper(jax.ShapeDtypeStruct((2048, 64), jnp.bfloat16), ids), "small"


def test_the_program_exchanges_activations_and_never_holds_the_table(monkeypatch):
    monkeypatch.setattr(table, "LARGE", 0)
    mesh = sharding.make_mesh(ParallelConfig(data=1, fsdp=8))
    place = NamedSharding(mesh, sharding.partition_spec(("vocab", "embed"), Rules()))
    shape = jax.ShapeDtypeStruct((V, D), jnp.float32, sharding=place)

    def fn(t):
        with sharding.use(mesh, Rules()):
            return jnp.sum(linear.embed({"table": t}, IDS) * DX)

    text = jax.jit(jax.grad(fn), out_shardings=place).lower(shape).compile().as_text()
    assert " all-to-all(" in text
    assert "all-reduce(" not in text
    assert not re.search(rf"f32\[{V},{D}\]", text)


@pytest.mark.parametrize("shape", [(B,), (B, T), (B, T, 3)], ids=str)
def test_rows_found_are_split_as_their_ids_are_whatever_the_rank(shape):
    mesh = sharding.make_mesh(ParallelConfig(data=1, fsdp=2, seq=2, tensor=2))
    place = NamedSharding(mesh, sharding.partition_spec(("vocab", "embed"), Rules()))
    ids = jax.random.randint(jax.random.key(3), shape, 0, V)
    with sharding.use(mesh, Rules()):
        found = jax.jit(lambda t: linear.embed({"table": t}, ids))(jax.device_put(TABLE, place))
    np.testing.assert_array_equal(found, TABLE[ids])
    assert found.addressable_shards[0].data.shape[:2] == (B // 2, (*shape, 2 * D)[1] // 2)
