"""Finite scalar quantization: the grid of codes, their numbers, and where gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.nn import fsq

X = np.random.default_rng(0).standard_normal((4, 5, 3)).astype(np.float32)


@pytest.mark.parametrize("levels", [2, 5, 8])
def test_each_value_becomes_the_nearest_level(levels):
    grid = np.linspace(-1, 1, levels)
    nearest = np.argmin(np.abs(np.tanh(X)[..., None] - grid), axis=-1)
    found = fsq.quantize(X, levels)
    np.testing.assert_allclose(found.codes, grid[nearest], atol=1e-6)
    np.testing.assert_array_equal(found.ids, nearest @ [1, levels, levels**2])


def test_each_number_stands_for_another_code_and_comes_back_from_it():
    ids = np.arange(4**3)
    codes = fsq.codes_of(ids, 4, 3)
    assert len(np.unique(codes, axis=0)) == len(ids)
    # tanh reaches 1 only at infinity, so values slightly below the levels must be rounded to them.
    np.testing.assert_array_equal(fsq.quantize(np.arctanh(0.99 * np.asarray(codes)), 4).ids, ids)


def test_a_gradient_ignores_the_rounding():
    weights = np.random.default_rng(1).standard_normal(X.shape).astype(np.float32)
    found = jax.grad(lambda x: jnp.sum(weights * fsq.quantize(x, 4).codes))(X)
    expected = jax.grad(lambda x: jnp.sum(weights * jnp.tanh(x)))(X)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.abs(found).min() > 0
