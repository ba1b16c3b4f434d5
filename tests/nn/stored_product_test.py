"""The forms in which int8 blocks become a dense weight give the same bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.core.storage import Blocks
from bigmodel_jax.nn import linear, stored
from bigmodel_jax.nn.transposed import transposed


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_bfloat16_weight_is_the_float32_one_rounded_once(kind):
    node = Blocks(kind, 16, narrow=True).pack(jax.random.normal(jax.random.key(0), (64, 96)))
    np.testing.assert_array_equal(node.dense("bfloat16"), node.dense("float32").astype("bfloat16"))


@pytest.mark.parametrize(("shape", "block"), [((64, 96), 16), ((8, 4, 16), 8), ((8, 4, 16), 16)])
def test_spread_scales_give_the_dense_weight_bit_for_bit(shape, block):
    node = Blocks("int8", block, narrow=True).pack(jax.random.normal(jax.random.key(0), shape))
    for dtype in ("float32", "bfloat16"):
        np.testing.assert_array_equal(stored.spread(node, dtype), node.dense(dtype))


@pytest.mark.parametrize(("shape", "num_inputs"), [((64, 96), 1), ((32, 4, 16), 1), ((4, 16, 64), 2)])
def test_a_transposed_weight_is_the_same_weight(shape, num_inputs):
    node = Blocks("int8", 16, narrow=True).pack(jax.random.normal(jax.random.key(0), shape))
    turned = transposed(node, num_inputs)
    assert (turned.shape, turned.ndim) == (shape, len(shape))
    for dtype in ("float32", "bfloat16"):
        np.testing.assert_array_equal(turned.dense(dtype), node.dense(dtype))
    x = jax.random.normal(jax.random.key(1), (3, 1, *shape[:num_inputs]))
    found, wanted = (linear.project(x, w, num_inputs) for w in (turned, node))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("axes", "num_inputs", "of_values"),
    [
        (("fsdp", "tensor", None), 1, ("tensor", None, None, "fsdp")),
        (("tensor", None, "fsdp"), 2, ("fsdp", None, "tensor")),
        (("fsdp", "tensor", None), 2, None),
    ],
)
def test_a_transposed_weight_stays_on_its_devices(axes, num_inputs, of_values):
    """The plan's shapes get the form and the sharding that the arrays get."""
    mesh = sharding.make_mesh(ParallelConfig(data=1, fsdp=4, tensor=2))
    place = NamedSharding(mesh, PartitionSpec(*axes))
    node = jax.tree.map(lambda x: jax.device_put(x, place), Blocks("int8", 8).pack(jnp.ones((8, 4, 64))))
    node = dataclasses.replace(node, scales=node.scales.astype(jnp.bfloat16))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), node)
    real, planned = transposed(node, num_inputs), transposed(shapes, num_inputs)
    if of_values is None:
        assert real is node
        assert planned is shapes
        return
    assert jax.tree.map(jnp.shape, real) == jax.tree.map(jnp.shape, planned)
    for ours, theirs in zip(jax.tree.leaves(real), jax.tree.leaves(planned), strict=True):
        assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)
    assert real.values.sharding.spec == PartitionSpec(*of_values)


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
