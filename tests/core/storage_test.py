"""A parameter in blocks of small integers: what it costs, what it loses, and how a mesh cuts it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params, sharding, storage
from bigmodel_jax.core.params import Param, normal
from bigmodel_jax.core.precision import cast
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.core.storage import Blocked, Blocks
from bigmodel_jax.nn import linear


def by_hand(w: np.ndarray, top: int, size: int) -> np.ndarray:
    out = np.empty_like(w)
    for row, new in zip(w.reshape(-1, size), out.reshape(-1, size), strict=True):
        scale = np.float32(np.abs(row).max()) / np.float32(top) if row.any() else np.float32(1)
        new[:] = np.round(row / scale) * scale
    return out


@pytest.mark.parametrize(("kind", "top"), [("int8", 127), ("int4", 7)])
def test_values_are_the_nearest_of_their_blocks_steps(kind, top):
    w = np.random.default_rng(0).standard_normal((3, 5, 24)).astype(np.float32)
    w[0, 0] = 0
    node = Blocks(kind, 16).pack(jnp.asarray(w))  # 12 is the largest divisor of 24 up to 16
    assert node.shape == (3, 5, 24)
    assert node.scales.shape == (3, 5, 2)
    assert node.values.nbytes == w.size // (1 if kind == "int8" else 2)
    np.testing.assert_allclose(node.dense("float32"), by_hand(w, top, 12), rtol=1e-6, atol=1e-7)
    again = Blocks(kind, 16).pack(node.dense("float32"))
    np.testing.assert_array_equal(again.values, node.values)


@pytest.mark.slow
def test_a_layer_of_a_stack_is_that_layers_own():
    w = jax.random.normal(jax.random.key(0), (3, 4, 8))
    node = Blocks("int4", 4).pack(w)
    _, layers = jax.lax.scan(lambda carry, layer: (carry, layer.dense("float32")), 0, node)
    np.testing.assert_array_equal(layers, node.dense("float32"))


@pytest.mark.slow
def test_a_product_takes_blocks_as_any_weight():
    w, x = jax.random.normal(jax.random.key(0), (6, 2, 8)), jax.random.normal(jax.random.key(1), (3, 6, 2))
    node = Blocks("int8", 8).pack(w)
    np.testing.assert_allclose(
        linear.project(x, node, num_dims=2), linear.project(x, node.dense("float32"), num_dims=2), rtol=1e-6
    )
    assert linear.project(x.astype("bfloat16"), node, num_dims=2).dtype == jnp.bfloat16


def test_a_cast_leaves_blocks_as_they_are():
    tree = {"a": Blocks("int8", 4).pack(jnp.ones((4, 4))), "b": jnp.ones(3)}
    done = cast(tree, "bfloat16")
    assert done["b"].dtype == jnp.bfloat16
    assert done["a"].scales.dtype == jnp.float32


SPEC = {"w": Param((8, 16), ("embed", "mlp"), normal(1.0), kind="constant", storage=Blocks("int4", 8))}


def test_the_spec_says_shapes_shardings_and_values_of_blocks():
    mesh = sharding.make_mesh(ParallelConfig(fsdp=2, tensor=4), jax.devices())
    placed = sharding.shardings(SPEC, mesh, Rules())
    assert isinstance(placed["w"], Blocked)
    assert placed["w"].values.shard_shape((8, 8)) == (4, 2)
    assert placed["w"].scales.shard_shape((8, 2)) == (4, 2), "four devices cannot cut two scales"
    shapes = params.abstract(SPEC, placed)
    made = jax.jit(lambda: params.init(SPEC, jax.random.key(0)), out_shardings=placed)()
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(lambda x: x.shape, shapes)
    assert made["w"].values.dtype == jnp.uint8
    assert "int4x8" in params.table(SPEC)
    np.testing.assert_array_equal(
        storage.dense(made["w"], "float32"), params.init(SPEC, jax.random.key(0))["w"].dense("float32")
    )


def test_what_cannot_be_stored_in_blocks_is_one_line():
    with pytest.raises(
        ValueError, match=r"storage = int8x64 with kind = 'trained'; only a constant can be stored in this form"
    ):
        Param((4, 4), (None, None), normal(1.0), storage=Blocks())
    with pytest.raises(ValueError, match=r"storage: int4x64 of shape \(4, 3\); its last dimension must be even"):
        Param((4, 3), (None, None), normal(1.0), kind="constant", storage=Blocks("int4"))


# --------------------------------------------------------------------------- normal floats, doubled


def codes_of(node: Blocked) -> np.ndarray:
    """The 4-bit numbers in the parameter's order."""
    blocks = np.asarray(node.values).reshape(*node.scales.shape, -1)
    return np.concatenate([blocks & 15, blocks >> 4], axis=-1).reshape(node.shape)


def test_nf4_values_are_the_nearest_levels_times_the_largest_of_a_block():
    w = np.random.default_rng(0).standard_normal((3, 5, 128)).astype(np.float32)
    w[0, 0] = 0
    node = Blocks("nf4").pack(jnp.asarray(w))
    assert node.values.nbytes == w.size // 2
    largest = np.abs(w.reshape(-1, 64)).max(1, keepdims=True)
    levels = np.asarray(storage.NF4, np.float32)
    distance = np.abs(w.reshape(-1, 64, 1) - largest[..., None] * levels)
    np.testing.assert_array_equal(codes_of(node).reshape(-1, 64)[2:], distance.argmin(-1)[2:])
    assert (codes_of(node)[0, 0] == 7).all(), "of a block of zeros the level 0"
    values = np.take_along_axis(levels[None], codes_of(node).reshape(-1, 64), 1) * largest
    np.testing.assert_array_equal(node.dense("float32"), values.reshape(w.shape))


def test_selects_look_up_what_a_gather_does():
    codes = jnp.arange(16, dtype=jnp.int32)
    np.testing.assert_array_equal(storage._select(storage.NF4, codes), np.asarray(storage.NF4, np.float32))


@pytest.mark.few("int8")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_doubled_scales_of_a_layer_are_its_own_and_cost_a_byte(kind):
    w = jax.random.normal(jax.random.key(0), (3, 70, 256)) * jnp.asarray([1.0, 2.0, 0.1])[:, None, None]
    single, double = (Blocks(kind, 64, double).pack(w) for double in (False, True))
    assert double.scales.dtype == jnp.uint8
    assert double.groups.shape == (3, 2), "280 scales a layer, 256 in a group"
    np.testing.assert_array_equal(single.values, double.values)
    np.testing.assert_allclose(double.offset, single.scales.mean((1, 2)), rtol=1e-6)
    errors = [jnp.abs(node.dense("float32") - w).mean((1, 2)) for node in (single, double)]
    assert (errors[1] < 1.05 * errors[0]).all()
    _, layers = jax.lax.scan(lambda carry, layer: (carry, layer.dense("float32")), 0, double)
    np.testing.assert_allclose(layers, double.dense("float32"), rtol=1e-6)
    alone = Blocks(kind, 64, True).pack(w[1:2])
    np.testing.assert_array_equal(alone.values[0], double.values[1])
    np.testing.assert_array_equal(alone.scales[0], double.scales[1])


def test_what_reads_a_stored_parameter_as_an_array_is_told_how_to():
    node = Blocks("nf4").pack(jnp.ones((4, 64)))
    said = r"a parameter of shape \(4, 64\) stored in nf4 was read as an array; read it through nn/linear.py project"
    for read in (lambda: jnp.ones((2, 4)) @ node, lambda: jnp.einsum("ij->ji", node), lambda: node[0], lambda: node.T):
        with pytest.raises(ValueError, match=said):
            read()
