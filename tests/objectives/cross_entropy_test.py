import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigmodel_jax.objectives.cross_entropy import cross_entropy

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(np.float32(RNG.standard_normal((3, 5, 7))))
TARGETS = jnp.asarray(np.int32(RNG.integers(0, 7, (3, 5))))


@pytest.mark.slow
def test_equals_optax_in_value_and_gradient():
    def theirs(x):
        return optax.softmax_cross_entropy_with_integer_labels(x, TARGETS)

    nats, log_z = cross_entropy(LOGITS, TARGETS)
    np.testing.assert_allclose(nats, theirs(LOGITS), rtol=1e-5)
    np.testing.assert_allclose(log_z, jax.nn.logsumexp(LOGITS, -1), rtol=1e-6)
    grads = [jax.grad(lambda x, f=f: f(x).sum())(LOGITS) for f in (lambda x: cross_entropy(x, TARGETS)[0], theirs)]
    np.testing.assert_allclose(*grads, atol=1e-6)


def test_large_logits_stay_finite():
    nats, _ = cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([1]))
    assert nats[0] == 2e4


def test_bfloat16_logits_are_summed_in_float32():
    """Over a vocabulary of 4,096 equal logits, a bfloat16 sum of exponentials would stop growing at
    256."""
    nats, _ = cross_entropy(jnp.zeros((1, 4096), jnp.bfloat16), jnp.array([0]))
    assert nats.dtype == jnp.float32
    np.testing.assert_allclose(nats[0], np.log(4096), rtol=1e-6)
