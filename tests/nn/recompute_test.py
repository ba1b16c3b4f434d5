"""What a gradient keeps of norms, gates and a softmax: their arguments; and it stays the same
gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.nn import feedforward, norm, recompute

# By numpy: JAX would compile, in every process that collects tests.
X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16, 32)).astype(jnp.bfloat16))
SCALE = {"scale": jnp.asarray(np.ones(32, np.float32)), "bias": jnp.asarray(np.zeros(32, np.float32))}


def kept(fn, *args) -> int:
    """Bytes that the backward pass of `fn` holds."""
    _, pull = jax.vjp(fn, *args)
    return sum(x.nbytes for x in jax.tree.leaves(pull))


@pytest.mark.parametrize("fn", [norm.rms, norm.layer])
def test_a_norm_keeps_its_input_alone(fn):
    assert kept(lambda x: fn(SCALE, x), X) <= X.nbytes + 2 * 32 * 4


def test_a_gated_layer_keeps_gate_up_and_their_product():
    p = {name: jnp.ones((32, 64), jnp.bfloat16) for name in ("gate", "up")} | {"down": jnp.ones((64, 32), jnp.bfloat16)}
    wide = 2 * X.nbytes
    assert kept(lambda x: feedforward.swiglu(p, x), X) <= 3 * wide + 3 * p["up"].nbytes


def test_on_a_cpu_device_nothing_is_computed_again():
    chain = recompute.from_arguments(lambda x: jnp.exp(jnp.sin(x)))

    def program() -> str:
        return str(jax.make_jaxpr(jax.grad(lambda x: chain(x).sum()))(jnp.ones(3)))

    assert "remat" in program()
    with sharding.use(sharding.make_mesh(ParallelConfig(), jax.devices()[:1]), Rules(), ParallelConfig()):
        assert "remat" not in program()


def test_the_gradient_is_the_same():
    def fn(x):
        return jnp.exp(jnp.sin(x)).sum()

    x = jnp.linspace(-1.0, 1.0, 7)
    np.testing.assert_array_equal(jax.grad(recompute.from_arguments(fn))(x), jax.grad(fn)(x))
