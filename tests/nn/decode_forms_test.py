"""Stored weights in the forms in which GPUs and TPUs decode: equal weights, on the same devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.core.storage import Blocks
from bigmodel_jax.nn import linear
from bigmodel_jax.nn.decode_forms import flat_scales, transposed


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.float32(np.random.default_rng(seed).standard_normal(shape)))


def on_a_mesh(node, axes):
    """The node's arrays on a mesh, and their shapes there."""
    mesh = sharding.make_mesh(ParallelConfig(data=1, fsdp=4, tensor=2))
    place = NamedSharding(mesh, PartitionSpec(*axes))
    node = jax.tree.map(lambda x: jax.device_put(x, place), node)
    return node, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), node)


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
@pytest.mark.parametrize(("num_inputs", "flat"), [(1, (6, 16)), (2, (24, 4))])
def test_flat_scales_change_no_dense_weight(kind, num_inputs, flat):
    node = Blocks(kind, 16).pack(draw(0, 3, 6, 4, 64))
    for one, lead in ((node, 1), (jax.tree.map(lambda x: x[1], node), 0)):
        found = flat_scales(one, lead, num_inputs)
        np.testing.assert_array_equal(found.dense("float32"), one.dense("float32"))
        assert found.scales.shape == one.scales.shape[:lead] + flat


@pytest.mark.parametrize(
    ("axes", "num_inputs", "flat"),
    [
        (("tensor", None, None), 2, (32, 1)),
        (("fsdp", "tensor", None), 1, (8, 4)),
        ((None, "tensor", None), 2, (8, 4, 1)),
    ],
)
def test_flat_scales_stay_on_their_devices(axes, num_inputs, flat):
    """The plan's shapes get the form and the sharding that the arrays get."""
    node, shapes = on_a_mesh(Blocks("int8").pack(draw(0, 8, 4, 64)), axes)
    real, planned = (flat_scales(x, 0, num_inputs).scales for x in (node, shapes))
    assert real.shape == planned.shape == flat
    assert real.sharding.is_equivalent_to(planned.sharding, real.ndim)
    np.testing.assert_array_equal(np.asarray(real).reshape(node.scales.shape), node.scales)


@pytest.mark.parametrize(("shape", "num_inputs"), [((64, 96), 1), ((32, 4, 16), 1), ((4, 16, 64), 2)])
def test_a_transposed_weight_is_the_same_weight(shape, num_inputs):
    node = Blocks("int8", 16, narrow=True).pack(draw(0, *shape))
    turned = transposed(node, num_inputs)
    assert (turned.shape, turned.ndim) == (shape, len(shape))
    for dtype in ("float32", "bfloat16"):
        np.testing.assert_array_equal(turned.dense(dtype), node.dense(dtype))
    x = draw(1, 3, 1, *shape[:num_inputs])
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
    node = Blocks("int8", 8, narrow=True).pack(draw(0, 8, 4, 64))
    node, shapes = on_a_mesh(dataclasses.replace(node, scales=node.scales.astype(jnp.bfloat16)), axes)
    real, planned = transposed(node, num_inputs), transposed(shapes, num_inputs)
    if of_values is None:
        assert real is node
        assert planned is shapes
        return
    assert jax.tree.map(jnp.shape, real) == jax.tree.map(jnp.shape, planned)
    for ours, theirs in zip(jax.tree.leaves(real), jax.tree.leaves(planned), strict=True):
        assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)
    assert real.values.sharding.spec == PartitionSpec(*of_values)
