"""Products with int8 blocks as they are stored: equal to those with the dense weight, and used
where few rows meet them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.core.storage import Blocks
from bigmodel_jax.nn import stored


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "num_dims", "block"),
    [((64, 96), 1, 32), ((64, 4, 16), 1, 16), ((4, 16, 64), 2, 32), ((64, 96), 1, 96)],
)
def test_the_product_is_that_of_the_dense_weight(shape, num_dims, block):
    node = Blocks("int8", block).pack(jax.random.normal(jax.random.key(0), shape))
    x = jax.random.normal(jax.random.key(1), (2, 3, *shape[:num_dims]))
    found = stored.project_as_stored(num_dims, x, node)
    expected = jnp.tensordot(x, node.dense(jnp.float32), num_dims)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(jnp.abs(expected).max()))


def test_no_dense_weight_is_made():
    """The only array of the weight's size that the program makes is its values in the type of the
    product."""
    node = Blocks("int8", 32).pack(jnp.ones((64, 96)))
    made = jax.make_jaxpr(lambda x, node: stored.project_as_stored(1, x, node))(jnp.ones((2, 64)), node)
    sizes = [(one.primitive.name, var.aval.size) for one in made.eqns for var in one.outvars]
    assert {name for name, size in sizes if size >= 64 * 96} == {"reshape", "convert_element_type"}


@pytest.mark.parametrize("block", [16, 64])
def test_logits_by_a_stored_table_are_those_of_the_dense_one(block):
    node = Blocks("int8", block).pack(jax.random.normal(jax.random.key(0), (96, 64)))
    x = jax.random.normal(jax.random.key(1), (2, 3, 64))
    found = stored.unembed_as_stored(x, node)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, x @ node.dense(jnp.float32).T, atol=1e-4)


@pytest.mark.parametrize(("shape", "block"), [((64, 96), 16), ((8, 4, 16), 8), ((8, 4, 16), 16)])
def test_spread_scales_give_the_dense_weight_bit_for_bit(shape, block):
    node = Blocks("int8", block, narrow=True).pack(jax.random.normal(jax.random.key(0), shape))
    for dtype in ("float32", "bfloat16"):
        np.testing.assert_array_equal(stored.spread(node, dtype), node.dense(dtype))


def test_spread_scales_of_a_sharded_dimension_move_nothing():
    """The program for a weight whose last dimension is sharded has no collective.

    It gives the dense weight.
    """
    node = Blocks("int8", 8, narrow=True).pack(jax.random.normal(jax.random.key(0), (64, 128)))
    mesh = sharding.make_mesh(ParallelConfig(data=2, tensor=4))
    places = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "tensor"))
    with sharding.use(mesh, Rules()):
        placed = jax.device_put(dataclasses.replace(node, last="mlp"), places)
        made = jax.jit(lambda node: stored.spread(node, "bfloat16"), out_shardings=places).lower(placed).compile()
    np.testing.assert_array_equal(made(placed), node.dense("bfloat16"))
    assert not [name for name in ("all-", "collective-") if name in made.as_text()]
