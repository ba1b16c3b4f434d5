"""GPTQ against the paper's algorithm written out in numpy, and against rounding to the nearest."""

import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.compress import gptq
from bigmodel_jax.core.storage import Blocks


def rounded(row: np.ndarray, top: int, size: int) -> np.ndarray:
    blocks = row.reshape(-1, size)
    largest = np.abs(blocks).max(1, keepdims=True)
    scale = np.where(largest > 0, largest / top, 1)
    return (np.round(blocks / scale) * scale).reshape(-1)


def by_hand(w: np.ndarray, hessian: np.ndarray, top: int, size: int) -> np.ndarray:
    """Computes algorithm 1 of arXiv:2210.17323 without lazy batches, for w (I, O) in float64."""
    w, n = w.astype(np.float64), len(w)
    h = hessian + 0.01 * np.mean(np.diag(hessian)) * np.eye(n)
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    out = np.zeros_like(w)
    for i in range(n):
        out[i] = rounded(w[i], top, size)
        w[i + 1 :] -= np.outer(u[i, i + 1 :], (w[i] - out[i]) / u[i, i])
    return out


def correlated(rng, rows: int, inputs: int) -> np.ndarray:
    return (rng.standard_normal((rows, inputs // 3)) @ rng.standard_normal((inputs // 3, inputs))).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "top"), [("int4", 7), ("int8", 127)])
def test_codes_are_those_of_the_algorithm_and_the_output_is_nearer_than_of_rounding(kind, top):
    rng = np.random.default_rng(0)
    x, w = (
        correlated(rng, 400, 150),
        rng.standard_normal((150, 4, 16)).astype(np.float32),
    )  # more inputs than one lazy part
    hessian = (x.T.astype(np.float64)) @ x
    storage = Blocks(kind, 16)
    got = np.asarray(gptq.quantise(storage, jnp.asarray(w), hessian, 1).dense("float32"))
    want = by_hand(w.reshape(150, -1), hessian, top, 16).reshape(w.shape)
    step = np.abs(w).max() / top
    # A value between two codes may fall to either; an error there moves what follows.
    assert np.mean(np.abs(got - want) > step / 4) < 0.01
    off = {
        name: np.square(np.tensordot(x, found - w, 1)).mean()
        for name, found in (("gptq", got), ("round", np.asarray(storage.pack(jnp.asarray(w)).dense("float32"))))
    }
    assert off["gptq"] < 0.5 * off["round"]


@pytest.mark.slow
def test_inputs_that_are_never_seen_are_rounded_to_the_nearest():
    rng = np.random.default_rng(1)
    w, x = rng.standard_normal((12, 8)).astype(np.float32), rng.standard_normal((50, 12))
    x[:, [0, 5]] = 0
    storage = Blocks("int4", 8)
    got = gptq.quantise(storage, jnp.asarray(w), x.T @ x, 1).dense("float32")
    np.testing.assert_allclose(got[0], storage.pack(jnp.asarray(w)).dense("float32")[0], rtol=1e-6)
    assert np.isfinite(np.asarray(got)).all()


def test_two_dimensions_of_inputs_are_one():
    rng = np.random.default_rng(2)
    w, x = rng.standard_normal((4, 6, 16)).astype(np.float32), rng.standard_normal((80, 24))
    storage = Blocks("nf4", 8, narrow=True)
    node = gptq.quantise(storage, jnp.asarray(w), x.T @ x, 2)
    flat = gptq.quantise(storage, jnp.asarray(w.reshape(24, 16)), x.T @ x, 1)
    np.testing.assert_array_equal(node.values.reshape(24, 8), flat.values)
    assert node.shape == (4, 6, 16)
    assert node.scales.dtype == jnp.bfloat16
