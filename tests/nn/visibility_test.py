"""Which keys a query sees, written out by hand; and attention's definition, computed token by token
in numpy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core.params import ones
from bigmodel_jax.nn import norm
from bigmodel_jax.nn.attention import attention, blockwise
from bigmodel_jax.nn.attention.visibility import Rule, Where, capped, reach, visible

# One row of two documents and two places of padding; the second document begins at position 0
# again.
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 0, 0]], np.int32)
POSITIONS = np.array([[0, 1, 2, 3, 0, 1, 0, 0]], np.int32)
AT = Where(jnp.asarray(POSITIONS), jnp.asarray(SEGMENTS))
SEEN = {
    "causal": (
        {},
        ["#.......", "##......", "###.....", "####....", "....#...", "....##..", "......##", "......##"],
    ),
    "both ways": (
        {"causal": False},
        ["####....", "####....", "####....", "####....", "....##..", "....##..", "......##", "......##"],
    ),
    "a window of two": (
        {"window": 2},
        ["#.......", "##......", ".##.....", "..##....", "....#...", "....##..", "......##", "......##"],
    ),
    "a window of one": (
        {"window": 1},
        ["#.......", ".#......", "..#.....", "...#....", "....#...", ".....#..", "......##", "......##"],
    ),
    "a window of two both ways": (
        {"causal": False, "window": 2},
        ["##......", "###.....", ".###....", "..##....", "....##..", "....##..", "......##", "......##"],
    ),
}


@pytest.mark.parametrize("case", SEEN)
def test_the_mask_is_the_picture(case):
    options, picture = SEEN[case]
    want = np.array([[c == "#" for c in row] for row in picture])
    np.testing.assert_array_equal(visible(AT, AT, **options)[0], want)


def test_queries_of_a_cache_see_the_keys_before_them():
    """The cache has columns 0 .. 5, the last two are empty, and one query stands at position 3."""
    keys = Where(jnp.array([[0, 1, 2, 3, 0, 0]]), jnp.array([[1, 1, 1, 1, 0, 0]]))
    query = Where(jnp.array([[3]]), jnp.array([[1]]))
    assert visible(query, keys)[0, 0].tolist() == [True] * 4 + [False] * 2
    assert visible(query, keys, window=3)[0, 0].tolist() == [False, True, True, True, False, False]


def test_a_window_reaches_as_far_as_the_rule_says_and_where_it_holds():
    far = 2**31 - 1
    assert int(reach(Rule(), None)) == far
    assert int(reach(Rule(window=5), None)) == 5
    assert int(reach(Rule(window=5), jnp.array(True))) == 5
    assert int(reach(Rule(window=5), jnp.array(False))) == far


def test_a_cap_is_its_tanh():
    x = np.array([-100.0, -1.0, 0.0, 2.0, 1e4])
    np.testing.assert_allclose(capped(jnp.asarray(x), 5.0), 5.0 * np.tanh(x / 5.0), rtol=1e-6)
    np.testing.assert_array_equal(capped(jnp.asarray(x), 0.0), np.float32(x))


# ----------------------------------------------------------------------------------- the definition

T, H, K, WIDTH = 8, 4, 2, 6
Q, KEYS, V = (
    np.random.default_rng(n).standard_normal((1, T, heads, width)).astype(np.float32)
    for n, heads, width in ((0, H, WIDTH), (1, K, WIDTH), (2, K, 5))
)
SINKS = np.array([0.5, -1.0, 2.0, 0.0], np.float32)
BIAS = np.random.default_rng(3).standard_normal((1, H, T, T)).astype(np.float32)


def by_hand(causal=True, window=0, softcap=0.0, sinks=None, bias=None, scale=None):
    """One query, one head and one key after the other; rows of padding are left out."""
    out = np.zeros((1, T, H, V.shape[-1]))
    for t, h in np.ndindex(T, H):
        if SEGMENTS[0, t] == 0:
            continue
        total, weighted = 0.0 if sinks is None else math.exp(sinks[h]), np.zeros(V.shape[-1])
        for s in range(T):
            distance = POSITIONS[0, t] - POSITIONS[0, s]
            if SEGMENTS[0, s] != SEGMENTS[0, t] or (causal and distance < 0):
                continue
            if window and (distance if causal else abs(distance)) >= window:
                continue
            logit = float(Q[0, t, h] @ KEYS[0, s, h // (H // K)]) * (1 / math.sqrt(WIDTH) if scale is None else scale)
            logit = softcap * math.tanh(logit / softcap) if softcap else logit
            logit += 0.0 if bias is None else bias[0, h, t, s]
            total += math.exp(logit)
            weighted += math.exp(logit) * V[0, s, h // (H // K)]
        out[0, t, h] = weighted / total
    return out


RULES = {
    "causal": {},
    "both ways": {"causal": False},
    "window": {"window": 2},
    "window both ways": {"causal": False, "window": 2},
    "soft cap": {"softcap": 0.7},
    "sinks": {"sinks": SINKS},
    "scale": {"scale": 0.9},
    "bias": {"bias": BIAS},
    "window, soft cap and sinks": {"window": 3, "softcap": 0.7, "sinks": SINKS},
}


CANNOT = {"plain": set(), "chunked": {"bias"}, "dot_product": {"bias", "softcap", "sinks"}}
PAIRS = [(name, case) for name, cannot in CANNOT.items() for case, rule in RULES.items() if not cannot & rule.keys()]


# attention_test.py compares chunks of the other rules with plain attention, which has all of them
# here.
@pytest.mark.few(
    *(
        f"{name}-{case}"
        for name, case in PAIRS
        if name != "chunked" or case in ("both ways", "scale", "window, soft cap and sinks")
    )
)
@pytest.mark.parametrize(("implementation", "case"), PAIRS)
def test_every_implementation_is_the_definition(implementation, case, monkeypatch):
    rule = RULES[case]
    monkeypatch.setattr(blockwise, "CHUNK", 3)
    options = {k: jnp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in rule.items()}
    attend = functools.partial(attention.attend, implementation=implementation, **options)
    out = jax.jit(attend)(Q, KEYS, V, AT, AT)
    real = SEGMENTS[0] > 0
    np.testing.assert_allclose(np.asarray(out)[:, real], by_hand(**rule)[:, real], atol=2e-6)


def test_a_bias_of_many_keys_is_computed_plainly():
    """The other portable form, which long keys get, takes no bias."""
    q = jax.ShapeDtypeStruct((1, 4096, 2, 8), jnp.float32)
    choose = functools.partial(attention._choose, "auto", Rule(), q, q, q, None)
    assert (choose(None), choose(jnp.zeros((1, 2, 1, 1)))) == ("chunked", "plain")


def test_a_window_that_does_not_hold_here_is_none():
    for local, window in ((True, 2), (False, 0)):
        out = attention.attend(Q, KEYS, V, AT, AT, window=2, local=jnp.array(local), implementation="plain")
        np.testing.assert_allclose(out[:, :6], by_hand(window=window)[:, :6], atol=2e-6)


# -------------------------------------------------------------------------------------------- norms


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norms_are_their_formulas(offset):
    x, scale, bias = Q[0, 0], np.linspace(-1, 1, WIDTH, dtype=np.float32), np.linspace(2, 3, WIDTH, dtype=np.float32)
    want = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.25) * (scale + offset)
    np.testing.assert_allclose(norm.rms({"scale": scale}, x, eps=0.25, offset=offset), want, rtol=1e-5)
    want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.25) * scale + bias
    np.testing.assert_allclose(norm.layer({"scale": scale, "bias": bias}, x, eps=0.25), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norms_of_queries_and_keys_have_their_own_scales_and_the_models_offset(offset):
    dim = 4
    tree = attention.spec(dim, H, K, WIDTH, init=ones(), out_init=ones(), bias=True, qk_norm=True)
    rng = np.random.default_rng(4)
    p = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), tree, is_leaf=lambda x: hasattr(x, "axes")
    )
    x = rng.standard_normal((1, 3, dim)).astype(np.float32)
    found = attention.qkv(p, x, norm_eps=0.25, norm_offset=offset)
    for name, got in zip("qkv", found, strict=True):
        want = np.einsum("btd,dhw->bthw", x, p[name]) + p[f"{name}_bias"]
        if name != "v":
            root = np.sqrt((want**2).mean(-1, keepdims=True) + 0.25)
            want = want / root * (p[f"{name}_norm"]["scale"] + offset)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    heads = rng.standard_normal((1, 3, H, WIDTH)).astype(np.float32)
    want = np.einsum("bthw,hwd->btd", heads, p["o"]) + p["o_bias"]
    np.testing.assert_allclose(attention.project_out(p, heads), want, rtol=1e-4, atol=1e-5)
