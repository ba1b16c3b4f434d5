"""Products in 8 bits: how far from the exact ones, what their gradients are, and that a model
learns with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import precision
from bigmodel_jax.nn import linear, quantized

N, D, H, F = 48, 64, 4, 24
# By numpy: JAX would compile, in every process that collects tests.
RNG = np.random.default_rng(0)
X = jnp.asarray(np.float32(RNG.standard_normal((2, N // 2, D))))
W = jnp.asarray(np.float32(RNG.standard_normal((D, H, F)) * D**-0.5))
KINDS = ("int8", "float8")
# Half a step of the largest value, as a share of it; of e4m3 (3 bits of mantissa) of each value.
STEP = {"int8": 0.5 / 127, "float8": 2.0**-4}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_quantization_is_off_by_half_a_step_at_most(kind):
    x = X.at[0, 0].set(0.0)
    q, scale = quantized.quantize(x, (2,), quantized.VALUES[kind])
    assert q.dtype == quantized.VALUES[kind]
    assert scale.shape == (2, N // 2, 1)
    error = jnp.abs(q.astype(jnp.float32) * scale - x)
    least = jnp.abs(x).max(-1, keepdims=True) * STEP["int8"] if kind == "int8" else jnp.abs(x) * STEP[kind] + 1e-3
    assert (error <= least * 1.001).all()
    assert not q[0, 0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_off_by_no_more_than_its_operands_are(kind):
    """Every entry satisfies |xw - QxQw| <= sum |dx||w| + |x||dw| + |dx||dw|, where each |d| is at
    most half a step."""
    got = quantized.project(kind, 1, X, W)
    want = jnp.tensordot(X, W, 1)
    if kind == "int8":
        dx, dw = (
            jnp.broadcast_to(jnp.abs(a).max(dim, keepdims=True) * STEP[kind], a.shape) for a, dim in ((X, 2), (W, 0))
        )
    else:
        dx, dw = (jnp.abs(a) * STEP[kind] + 1e-3 for a in (X, W))
    bound = jnp.tensordot(dx, jnp.abs(W), 1) + jnp.tensordot(jnp.abs(X), dw, 1) + jnp.tensordot(dx, dw, 1)
    assert (jnp.abs(got - want) <= bound).all()
    # The errors are as good as independent, so that in the mean the product is far better.
    assert jnp.sqrt(jnp.mean((got - want) ** 2) / jnp.mean(want**2)) < {"int8": 0.012, "float8": 0.05}[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_gradient_is_exact_and_the_inputs_is_near(kind):
    dy = jax.random.normal(jax.random.key(2), (2, N // 2, H, F))
    got = jax.vjp(lambda x, w: quantized.project(kind, 1, x, w), X, W)[1](dy)
    want = jax.vjp(lambda x, w: jnp.tensordot(x, w, 1), X, W)[1](dy)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=1e-5)
    error = jnp.sqrt(jnp.mean((got[0] - want[0]) ** 2) / jnp.mean(want[0] ** 2))
    assert 0 < error < {"int8": 0.012, "float8": 0.08}[kind]


def test_every_product_with_a_weight_asks_the_policy():
    x, w = jnp.ones((3, D, H)), jnp.ones((D, H, F))
    with precision.use(precision.Policy(matmul="int8")):
        got = str(jax.make_jaxpr(lambda x: linear.project(x, w, num_dims=2))(x))
        assert "i8[" in got
        assert "i32[3,24]" in got
    assert "i8[" not in str(jax.make_jaxpr(lambda x: linear.project(x, w, num_dims=2))(x))
