"""Layers against numbers that were written down, or numpy that shares nothing with them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.nn import feedforward, linear, multi_token, position
from bigmodel_jax.nn.attention import latent_attention
from bigmodel_jax.nn.attention.attention import Where
from bigmodel_jax.nn.experts import bias_routing, expert_exchange, moe
from bigmodel_jax.nn.experts.moe import Routing
from bigmodel_jax.nn.head import Head
from bigmodel_jax.nn.position import RopeScaling

RNG = np.random.default_rng(0)


def normal(*shape) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


# --------------------------------------------------------------------------------- rotary positions


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_rotation_is_the_product_with_a_complex_number(interleaved):
    """Pair i turns forwards by position / theta^(2 i / h), so the first pair turns fastest."""
    x, positions, theta = normal(1, 4, 2, 6), np.array([[0, 1, 5, 1000]]), 100.0
    turned = position.rope(
        jnp.asarray(x), position.rope_angles(jnp.asarray(positions), 6, theta=theta), interleaved=interleaved
    )
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :3], x[..., 3:])
    angle = positions[0][:, None, None] * theta ** (-np.arange(0, 6, 2) / 6)
    want = (first + 1j * second) * np.exp(1j * angle)
    got = (turned[..., 0::2], turned[..., 1::2]) if interleaved else (turned[..., :3], turned[..., 3:])
    np.testing.assert_allclose(got[0], want.real, atol=2e-4)
    np.testing.assert_allclose(got[1], want.imag, atol=2e-4)


def test_a_stretched_rotation_is_longer_by_its_factor():
    """YaRN's factor multiplies cosines and sines alike; the products of DeepSeek and GPT-OSS rely
    on both."""
    positions, scaling = jnp.array([[0, 3, 700]]), RopeScaling("yarn", 4.0, 64, attention_factor=1.5)
    cos, sin = position.rope_angles(positions, 8, scaling=scaling)
    angle = np.array([0, 3, 700])[:, None] * position.frequencies(8, 10_000.0, scaling)
    np.testing.assert_allclose(cos[0, :, 0], 1.5 * np.cos(angle), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sin[0, :, 0], 1.5 * np.sin(angle), rtol=1e-4, atol=1e-4)
    assert position.attention_factor(RopeScaling("yarn", 4.0)) == pytest.approx(0.1 * math.log(4.0) + 1.0)
    assert position.attention_factor(RopeScaling("linear", 4.0)) == 1.0


def test_sinusoids_are_those_of_the_paper():
    table = position.sinusoids(50, 8)
    for pos in (0, 1, 7, 49):
        angles = [pos / 10_000 ** (2 * i / 8) for i in range(4)]
        np.testing.assert_allclose(table[pos], [*map(math.sin, angles), *map(math.cos, angles)], rtol=1e-5, atol=1e-7)


# ----------------------------------------------------------------------------------------- products


def test_gated_products_are_their_formulas():
    p = {"gate": normal(4, 6), "up": normal(4, 6), "down": normal(6, 4)}
    x = normal(1, 3, 4)
    gate, up = x @ p["gate"], x @ p["up"]
    np.testing.assert_allclose(
        feedforward.swiglu(p, x), (gate / (1 + np.exp(-gate)) * up) @ p["down"], rtol=1e-4, atol=1e-5
    )
    tanh = np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))
    np.testing.assert_allclose(
        feedforward.geglu(p, x), (0.5 * gate * (1 + tanh) * up) @ p["down"], rtol=1e-4, atol=1e-5
    )


def test_a_perceptron_has_its_biases():
    p = {
        "up": {"kernel": normal(4, 6), "bias": normal(6)},
        "down": {"kernel": normal(6, 4), "bias": normal(4)},
    }
    x = normal(1, 3, 4)
    want = np.maximum(x @ p["up"]["kernel"] + p["up"]["bias"], 0) @ p["down"]["kernel"] + p["down"]["bias"]
    np.testing.assert_allclose(feedforward.mlp(p, x, jax.nn.relu), want, rtol=1e-4, atol=1e-5)


def test_an_embedding_is_its_row():
    table = normal(7, 4)
    np.testing.assert_array_equal(linear.embed({"table": table}, jnp.array([[6, 0], [3, 3]])), table[[[6, 0], [3, 3]]])


@pytest.mark.slow
@pytest.mark.parametrize("absorb", [False, True])
def test_latent_attention_head_by_head(absorb):
    """One latent gives keys and values of unequal width, and all heads share one rotary key."""
    (T, H, R, n, r, w), scale = (4, 2, 5, 3, 2, 4), 0.3
    q, kv = (normal(1, T, H, n), normal(1, T, H, r)), (normal(1, T, R), normal(1, T, r))
    p = {"kv_b": normal(R, H, n + w), "o": normal(H, w, 6)}
    at = Where(jnp.arange(T)[None], jnp.ones((1, T), jnp.int32))
    got = latent_attention.attend(p, q, kv, at, at, scale=scale, absorb=absorb)
    want = np.zeros((T, 6))
    for t, h in np.ndindex(T, H):
        keys_values = kv[0][0] @ p["kv_b"][:, h]
        logits = [scale * float(q[0][0, t, h] @ keys_values[s, :n] + q[1][0, t, h] @ kv[1][0, s]) for s in range(t + 1)]
        shares = np.exp(logits) / np.exp(logits).sum()
        want[t] += shares @ keys_values[: t + 1, n:] @ p["o"][h]
    np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-5)


def test_a_cache_of_latents_is_written_where_it_ends():
    cache = params.empty(latent_attention.empty_cache(1, 2, 5, 3, 2, jnp.float32))
    cache = jax.tree.map(lambda x: x[0], cache)
    new = normal(2, 2, 3), normal(2, 2, 2)
    found = latent_attention.update_cache(cache, new, jnp.int32(2))
    for name, x in zip(("latent", "k_rope"), new, strict=True):
        np.testing.assert_array_equal(found[name][:, 2:4], x)
        assert not np.any(found[name][:, :2])
        assert not np.any(found[name][:, 4:])


# ------------------------------------------------------------------------------------------ experts


@pytest.mark.parametrize("normalize", [False, True])
def test_a_router_is_a_softmax_and_its_largest(normalize):
    x, p = normal(2, 5, 4), {"kernel": normal(4, 6), "bias": normal(6)}
    routing = moe.route(p, x, 3, normalize=normalize)
    for b, t in np.ndindex(2, 5):
        logits = (x[b, t].astype(np.float64) @ p["kernel"] + p["bias"]).tolist()
        probs = [math.exp(z) / sum(map(math.exp, logits)) for z in logits]
        chosen = sorted(range(6), key=lambda e: -probs[e])[:3]
        weights = [probs[e] / (sum(probs[c] for c in chosen) if normalize else 1.0) for e in chosen]
        assert routing.experts[b, t].tolist() == chosen
        np.testing.assert_allclose(routing.weights[b, t], weights, rtol=1e-5)
        np.testing.assert_allclose(routing.probs[b, t], probs, rtol=1e-5)
        np.testing.assert_allclose(routing.logits[b, t], logits, rtol=1e-5, atol=1e-6)


# Three tokens and one of padding, three experts, two choices each.
LOGITS = np.log(np.array([[[6.0, 3, 1], [1.5, 8, 0.5], [2, 3, 5], [9, 9, 9]]], np.float32))
PROBS = np.array([[[0.6, 0.3, 0.1], [0.15, 0.8, 0.05], [0.2, 0.3, 0.5], [1 / 3] * 3]], np.float32)
EXPERTS = np.array([[[0, 1], [1, 0], [2, 1], [0, 1]]], np.int32)
MASK = np.array([[True, True, True, False]])
ROUTING = Routing(jnp.asarray(LOGITS), jnp.asarray(PROBS), jnp.asarray(EXPERTS), jnp.ones((1, 4, 2)))


def test_a_load_counts_tokens_and_no_padding():
    load = moe.load(ROUTING, MASK)
    np.testing.assert_array_equal(load.assigned, [2, 3, 1])
    np.testing.assert_allclose(load.probs, [0.95, 1.4, 0.65], rtol=1e-6)
    assert float(load.tokens) == 3
    assert float(load.log_z_squared) == pytest.approx(3 * math.log(10) ** 2, rel=1e-5)
    np.testing.assert_array_equal(bias_routing.num_tokens(ROUTING, MASK), [2, 3, 1])


def test_the_losses_of_two_layers_are_numbers():
    """The loss is E sum_e (assigned_e / tokens) (probs_e / tokens) over both layers: 3 (4/6 1.9/6 +
    6/6 2.8/6 + 2/6 1.3/6)."""
    one = moe.load(ROUTING, MASK)
    found = moe.losses(jax.tree.map(lambda x: jnp.stack([x, x]), one), balance=0.1, z=0.01)
    balance = 0.1 * 3 * (4 / 6 * 1.9 / 6 + 6 / 6 * 2.8 / 6 + 2 / 6 * 1.3 / 6)
    assert float(found["load_balancing_loss"]) == pytest.approx(balance, rel=1e-5)
    assert float(found["router_z_loss"]) == pytest.approx(0.01 * math.log(10) ** 2, rel=1e-5)


def test_a_routing_bias_rises_for_the_idle_and_falls_for_the_busy():
    new = bias_routing.updated_bias(jnp.array([0.5, 0.0, -0.5, 0.0]), jnp.array([1.0, 9.0, 2.0, 4.0]), 0.25)
    np.testing.assert_array_equal(new, [0.75, -0.25, -0.25, 0.0])


def test_sequence_balance_is_a_number():
    """f is (E / k) times the share of tokens that prefer each expert, and P the mean share:
    (3/2)(2/3 0.95/3 + 3/3 1.4/3 + 1/3 0.65/3)."""
    found = bias_routing.sequence_balance(ROUTING, MASK)
    want = 1.5 * (2 / 3 * 0.95 / 3 + 3 / 3 * 1.4 / 3 + 1 / 3 * 0.65 / 3)
    assert float(found.count) == 3
    assert float(found.total) == pytest.approx(3 * want, rel=1e-5)


def test_every_expert_has_its_share_of_places_and_the_first_tokens_take_them():
    """Each expert has one place: token 0 takes those of experts 0 and 1, and token 2 that of expert
    2. The other choices are dropped."""
    p = {
        "gate": np.ones((3, 2, 1)),
        "up": np.ones((3, 2, 1)),
        "down": np.array([1.0, 10.0, 100.0])[:, None, None] * np.ones((3, 1, 2)),
    }
    x = np.array([[[1.0, 0], [2, 0], [3, 0], [4, 0]]], np.float32)
    assert moe.places(4, 2, 3, 0.3) == 1
    assert [moe.places(5, 2, 4, f) for f in (1.0, 1.25, 1.9)] == [3, 4, 5], "2.5, 3.125 and 4.75, rounded up"
    out = moe.capacity(jax.tree.map(np.float32, p), x, ROUTING, MASK, 0.3, lambda gate, up: gate)
    np.testing.assert_allclose(out[0, :, 0], [11, 0, 300, 0])
    np.testing.assert_allclose(out[0, :, 1], [11, 0, 300, 0])
    every = moe.dense(jax.tree.map(np.float32, p), x, ROUTING, lambda gate, up: gate)
    np.testing.assert_allclose(every[0, :, 0], [11, 22, 330, 44])


def test_a_device_takes_the_first_rows_that_come():
    """There are two devices with two experts each, rows (from device, to device, of expert), and
    room for five rows on each device. Device 0 gets 2, 1 from itself and 1, 4 from the other: the
    last three of eight stay. Device 1 gets 3."""
    from_to = jnp.array([[[2, 1], [0, 3]], [[1, 4], [0, 0]]])
    np.testing.assert_array_equal(expert_exchange._first(from_to, 5), [[[2, 1], [0, 3]], [[1, 1], [0, 0]]])
    np.testing.assert_array_equal(expert_exchange._first(from_to, 2), [[[2, 0], [0, 2]], [[0, 0], [0, 0]]])
    np.testing.assert_array_equal(expert_exchange._first(from_to, 8), from_to)
    np.testing.assert_array_equal(expert_exchange._starts(jnp.array([[2, 3], [4, 1]]), 1), [[0, 2], [0, 4]])
    np.testing.assert_array_equal(expert_exchange._starts(jnp.array([[2, 3], [4, 1]]), 0), [[0, 0], [2, 3]])


# ----------------------------------------------------------------------------------- further tokens

SEGMENTS = np.array([[1, 1, 1, 2, 2, 0]], np.int32)


def test_what_stands_further_on_is_of_the_same_document_or_nothing():
    np.testing.assert_array_equal(multi_token.shift(np.arange(1, 7)[None], 2), [[3, 4, 5, 6, 0, 0]])
    np.testing.assert_array_equal(multi_token.shift(np.arange(1, 7)[None], 9), [[0] * 6])
    np.testing.assert_array_equal(multi_token.segments_ahead(SEGMENTS, 1), [[1, 1, 0, 2, 0, 0]])
    np.testing.assert_array_equal(multi_token.segments_ahead(SEGMENTS, 2), [[1, 0, 0, 0, 0, 0]])


@pytest.mark.slow
def test_the_loss_of_further_tokens_is_a_sum_over_those_that_can_be_known():
    """Module k predicts the target of i + k at place i, if that target is in the same document and
    has weight."""
    targets, weights = np.array([[3, 1, 0, 2, 1, 0]]), np.array([[1, 1, 0.5, 1, 1, 0]], np.float32)
    logits = normal(2, 1, 6, 4)
    table = np.eye(4, dtype=np.float32)
    found = multi_token.loss(Head(jnp.asarray(logits), jnp.asarray(table)), targets, weights, SEGMENTS)
    want = 0.0
    for k in (1, 2):
        for i in range(6 - k):
            if SEGMENTS[0, i] == SEGMENTS[0, i + k] != 0:
                z = logits[k - 1, 0, i].tolist()
                want += weights[0, i + k] * (math.log(sum(map(math.exp, z))) - z[targets[0, i + k]])
    assert float(found) == pytest.approx(want / 2 / weights.sum(), rel=1e-5)
