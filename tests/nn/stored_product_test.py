"""The forms in which int8 blocks become a dense weight give the same bits."""

import dataclasses

import jax
import numpy as np
import pytest

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.core.storage import Blocks
from bigmodel_jax.nn import stored


def packed(kind, block, *shape):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return jax.jit(Blocks(kind, block, narrow=True).pack)(weight)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_bfloat16_weight_is_the_float32_one_rounded_once(kind):
    node = packed(kind, 16, 64, 96)
    np.testing.assert_array_equal(node.dense("bfloat16"), node.dense("float32").astype("bfloat16"))


@pytest.mark.parametrize(("shape", "block"), [((64, 96), 16), ((8, 4, 16), 8), ((8, 4, 16), 16)])
def test_spread_scales_give_the_dense_weight_bit_for_bit(shape, block):
    node = packed("int8", block, *shape)
    for dtype in ("float32", "bfloat16"):
        np.testing.assert_array_equal(stored.spread(node, dtype), node.dense(dtype))


def test_spread_scales_of_a_sharded_dimension_move_nothing():
    """The program for a weight whose last dimension is sharded has no collective.

    It gives the dense weight.
    """
    node = packed("int8", 8, 64, 128)
    mesh = sharding.make_mesh(ParallelConfig(data=2, tensor=4))
    places = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "tensor"))
    with sharding.use(mesh, Rules()):
        placed = jax.device_put(dataclasses.replace(node, last="mlp"), places)
        made = jax.jit(lambda node: stored.spread(node, "bfloat16"), out_shardings=places).lower(placed).compile()
    np.testing.assert_array_equal(made(placed), node.dense("bfloat16"))
    assert not [name for name in ("all-", "collective-") if name in made.as_text()]
