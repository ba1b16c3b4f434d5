"""The gated delta rule in chunks, and its convolution, against their definitions token by token; no
document sees another, and padding changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.nn import delta_rule
from bigmodel_jax.nn.attention.visibility import Where

B, T, K, G, k, v, W = 2, 13, 2, 2, 4, 3, 3
# Two documents and padding at the end; and a piece of a prompt, after padding, that goes on at 7.
SEGMENTS = np.array([[1] * 5 + [2] * 6 + [0] * 2, [0] * 2 + [1] * 11], np.int32)
POSITIONS = np.array([[*range(5), *range(8)], [7, 7, *range(7, 18)]], np.int32)
DOCS = delta_rule.documents(Where(jnp.array(POSITIONS), jnp.array(SEGMENTS)))
REAL = SEGMENTS > 0


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inputs() -> tuple:
    q, keys = (drawn(B, T, K, k, seed=seed) for seed in (1, 2))
    # Strong decays, whose sums would overflow between documents.
    decay, rate = -np.abs(drawn(B, T, K, G, seed=3)) * np.float32([1, 50]), 1 / (1 + np.exp(drawn(B, T, K, G, seed=4)))
    return q, keys, drawn(B, T, K, G, v, seed=5), decay, rate


def by_definition(q, keys, values, decay, rate, state):
    """Every row, head and token one after another."""
    out, after = np.zeros((B, T, K, G, v)), np.array(state, np.float64)
    q, keys = (x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6) for x in (q, keys))
    for b, h, g in np.ndindex(B, K, G):
        S = after[b, h, g]
        for t in np.flatnonzero(REAL[b]):
            S = np.exp(decay[b, t, h, g]) * S * (POSITIONS[b, t] > 0)
            S = S + rate[b, t, h, g] * np.outer(keys[b, t, h], values[b, t, h, g] - keys[b, t, h] @ S)
            out[b, t, h, g] = q[b, t, h] @ S / k**0.5
        after[b, h, g] = S
    return out, after


@pytest.mark.parametrize("size", [4, 64])
def test_chunks_give_what_the_definition_gives(size, monkeypatch):
    monkeypatch.setattr(delta_rule.chunked, "__defaults__", (size,))
    arguments, state = inputs(), drawn(B, K, G, k, v, seed=6)
    out, after = jax.jit(delta_rule.apply)(*arguments, DOCS, state)
    want, last = by_definition(*arguments, state)
    np.testing.assert_allclose(np.asarray(out)[REAL], want[REAL], atol=2e-6)
    np.testing.assert_allclose(after, last, atol=2e-6)


def test_one_token_gives_what_the_definition_gives():
    arguments, state = inputs(), drawn(B, K, G, k, v, seed=6)
    step, outs = jax.jit(delta_rule.apply), []
    want, last = by_definition(*arguments, state)
    for t in range(T):
        docs = delta_rule.documents(Where(POSITIONS[:, t : t + 1], SEGMENTS[:, t : t + 1]))
        out, state = step(*(x[:, t : t + 1] for x in arguments), docs, state)
        outs.append(out)
    np.testing.assert_allclose(np.concatenate(outs, axis=1)[REAL], want[REAL], atol=2e-6)
    np.testing.assert_allclose(state, last, atol=2e-6)


def test_a_segment_begins_a_document_wherever_its_positions_begin():
    segments = jnp.array([[0, 1, 1, 0, 1, 2, 0, 2, 3]])
    docs = delta_rule.documents(Where(jnp.arange(5, 14)[None], segments))
    assert docs.number.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, 2]]


def convolved(x, kernel, past):
    """(outputs, state after the last token), every row and token one after another."""
    out, after = np.zeros(x.shape), np.array(past)
    for b in range(B):
        seen = list(past[b])
        for t in np.flatnonzero(REAL[b]):
            seen = [*([np.zeros_like(x[b, t])] * W if POSITIONS[b, t] == 0 else seen), x[b, t]]
            y = sum(tap * kernel[..., W - 1 - n] for n, tap in enumerate(seen[: -W - 1 : -1]))
            out[b, t] = y / (1 + np.exp(-y))
        after[b] = seen[1 - W :]
    return out, after


def test_the_convolution_sees_the_last_tokens_of_its_document():
    x, kernel, past = drawn(B, T, K, k), drawn(K, k, W, seed=1), drawn(B, W - 1, K, k, seed=2)
    out, after = jax.jit(delta_rule.short_convolution)(x, kernel, DOCS, past)
    want, last = convolved(x, kernel, past)
    np.testing.assert_allclose(np.asarray(out)[REAL], want[REAL], atol=1e-6)
    np.testing.assert_allclose(after, last, atol=1e-6)
    alone, none = jax.jit(delta_rule.short_convolution)(x, kernel, DOCS, None)
    want, _ = convolved(x, kernel, 0 * past)
    np.testing.assert_allclose(np.asarray(alone)[REAL], want[REAL], atol=1e-6)
    assert none is None
