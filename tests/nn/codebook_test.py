"""The codebook: which code is the nearest, where gradients go, and what a code's length changes."""

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.nn import codebook

TABLE = np.array([[3, 0], [0, 0.5], [-1, -1]], np.float32)
P = {"table": jnp.asarray(TABLE)}
VECTORS = np.array([[[0.1, 0.01], [-2, -1]], [[0, 9], [1, 0.9]]], np.float32)


def test_the_nearest_code_is_the_one_of_the_smallest_angle():
    cosines = VECTORS @ TABLE.T / np.linalg.norm(VECTORS, axis=-1)[..., None] / np.linalg.norm(TABLE, axis=-1)
    found = codebook.quantise(P, VECTORS)
    assert found.ids.tolist() == np.argmax(cosines, axis=-1).tolist() == [[0, 2], [1, 0]]
    np.testing.assert_allclose(found.codes, codebook.codes_of(P, found.ids))
    for x in (found.vectors, found.codes):
        np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 2**0.5, rtol=1e-6)


def test_a_longer_code_is_taken_no_more_often():
    longer = {"table": jnp.asarray(TABLE * np.array([[1], [1], [100]], np.float32))}
    for x, y in zip(codebook.quantise(P, VECTORS), codebook.quantise(longer, VECTORS), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_a_gradient_passes_the_codebook_by():
    """The value is the code's, and the gradient is the one that the scaled vectors would have."""
    weights = jnp.asarray(np.random.default_rng(0).standard_normal(VECTORS.shape), jnp.float32)

    def through(p, x):
        return jnp.sum(weights * codebook.straight_through(codebook.quantise(p, x)))

    def without(x):
        return jnp.sum(weights * codebook.scaled(x))

    found = codebook.quantise(P, VECTORS)
    np.testing.assert_allclose(through(P, VECTORS), jnp.sum(weights * found.codes), rtol=1e-6)
    of_table, of_vectors = jax.grad(through, argnums=(0, 1))(P, jnp.asarray(VECTORS))
    expected = jax.grad(without)(jnp.asarray(VECTORS))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(of_vectors, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(of_table["table"], np.zeros_like(TABLE))
