"""Products with stored weights: their values, their gradients, and that no pass keeps a dense
weight for another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import precision, storage
from bigmodel_jax.core.params import Init
from bigmodel_jax.core.storage import Blocks, Half
from bigmodel_jax.nn import linear, stack
from bigmodel_jax.nn.experts import moe

LAYERS, WIDTH = 8, 128
HOW = {
    "int8": Blocks("int8"),
    "int4": Blocks("int4"),
    "nf4": Blocks("nf4"),
    "nf4 doubled": Blocks("nf4", double=True),
    "bfloat16": Half(),
}
every_kind = pytest.mark.parametrize("kind", HOW)


def weights(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.float32(np.random.default_rng(seed).standard_normal(shape) * 0.05))


@pytest.mark.few("compute-int4", "int8-nf4 doubled")
@pytest.mark.slow
@every_kind
@pytest.mark.parametrize("matmul", ["compute", "int8"])
def test_the_gradient_of_the_input_is_that_of_the_dense_weight(kind, matmul):
    x, node = weights(3, 6, 4, seed=1), HOW[kind].pack(weights(6, 4, 5, 64))
    dense = node.dense("float32")
    with precision.use(precision.Policy(matmul=matmul)):
        ours, theirs = (
            jax.jit(jax.grad(lambda x, w=w: jnp.sum(linear.project(x, w, 2) ** 2)))(x) for w in (node, dense)
        )
    assert float(jnp.abs(theirs).max()) > 0.01
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def through_layers(unroll: bool, remat: str):
    """The gradient of inputs and of one trained number a layer, through LAYERS matrices."""

    def block(p, x, xs):
        return jnp.tanh(linear.project(x, p["w"])) * p["scale"], None

    def loss(x, scale, w):
        return (
            stack.sequential(block, {"w": w, "scale": scale}, x, unroll=unroll, remat=remat)[0]
            .astype(jnp.float32)
            .sum()
        )

    return jax.grad(loss, argnums=(0, 1))


def temporaries(w, dtype="float32", **options) -> int:
    args = jnp.ones((4, WIDTH), dtype), jnp.ones(LAYERS, dtype), w
    return jax.jit(through_layers(**options)).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.few("False-dots-nf4 doubled", "True-none-int4")
@pytest.mark.slow
@every_kind
@pytest.mark.parametrize(("unroll", "remat"), [(False, "none"), (False, "dots"), (True, "none")])
def test_a_step_holds_no_stack_of_dense_weights(kind, unroll, remat):
    dense = 4 * LAYERS * WIDTH * WIDTH
    node = HOW[kind].pack(weights(LAYERS, WIDTH, WIDTH))
    assert temporaries(node, unroll=unroll, remat=remat) < dense / (1 if unroll else 2)


def test_without_it_a_step_would_hold_them():
    """The measure of the test above finds dense weights where a program holds them."""
    node = jax.jit(HOW["nf4"].pack)(weights(LAYERS, WIDTH, WIDTH))

    def block(p, x, xs):
        return jnp.tanh(x @ storage.dense(p, x.dtype)), None

    found = jax.jit(jax.grad(lambda x: stack.sequential(block, node, x)[0].sum()))
    usage = found.lower(jnp.ones((4, WIDTH))).compile().memory_analysis()
    assert usage.temp_size_in_bytes > 4 * LAYERS * WIDTH * WIDTH


@pytest.mark.slow
@pytest.mark.parametrize(
    ("implementation", "capacity"),
    [("dense", 0.0), ("grouped", 0.0), ("dense", 2.0)],
)
def test_experts_take_stored_weights_in_every_form(implementation, capacity):
    draw = Init("draw", lambda key, shape, dtype: jax.random.normal(key, shape, dtype) * 0.1)
    spec = moe.spec(4, 16, 32, init=draw, out_init=draw)
    p = {name: Blocks("nf4", 16).pack(weights(*one.shape, seed=n)) for n, (name, one) in enumerate(spec.items())}
    dense = {name: node.dense("float32") for name, node in p.items()}
    x, router = weights(2, 6, 16, seed=5), {"kernel": weights(16, 4, seed=6)}

    def loss(x, p):
        mask = jnp.ones(x.shape[:2], bool)
        routing = moe.route(router, x, 2)
        y = moe.experts(p, x, routing, mask, implementation=implementation, capacity_factor=capacity)
        return jnp.sum(jnp.square(y))

    found = jax.jit(jax.value_and_grad(loss))
    for ours, theirs in zip(found(x, p), found(x, dense), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.few("int8", "nf4 doubled")
@pytest.mark.slow
@every_kind
def test_a_stored_table_is_looked_up_and_multiplied(kind):
    node, ids, x = HOW[kind].pack(weights(8, 64)), jnp.asarray([[1, 7, 2]]), weights(3, 64)
    table = node.dense("float32")
    np.testing.assert_array_equal(linear.embed({"table": node}, ids), table[ids])
    np.testing.assert_allclose(linear.unembed({"table": node}, x), x @ table.T, rtol=1e-5, atol=1e-5)
