"""Flax is the oracle of our own layers: same weights, same outputs and the same gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from bigmodel_jax.core import params
from bigmodel_jax.core.params import normal
from bigmodel_jax.nn import feedforward, linear, norm, position
from bigmodel_jax.nn.attention import attention, blockwise
from bigmodel_jax.nn.attention.attention import Where

B, T, D, H, K, h, F = 2, 12, 16, 4, 2, 8, 24
# By numpy: JAX would compile, in every process that collects tests.
X = jnp.asarray(np.float32(np.random.default_rng(0).standard_normal((B, T, D))))
INIT = normal(0.3)


def drawn(spec, seed=1):
    """Random values for every parameter, those that start at 0 or 1 as well."""
    rng = np.random.default_rng(seed)

    def one(p):
        around = 1.0 if p.init.name == "ones" else 0.0
        return jnp.asarray(np.float32(around + 0.4 * rng.standard_normal(p.shape)))

    return params.map_spec(one, spec)


def same(ours, theirs, p, *, tolerance=1e-5):
    """Asserts equal values, and equal gradients of a token's squared output by the parameters and
    the input."""

    def with_gradients(f):
        def loss(p, x):
            out = f(p, x)
            return jnp.sum(jnp.square(out)) / (B * T), out

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(p, X)

    equal = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(equal, with_gradients(ours), with_gradients(theirs))


@pytest.mark.parametrize("bias", [False, True])
def test_linear(bias):
    p = drawn(linear.linear_spec(D, F, bias=bias))
    same(linear.linear, lambda p, x: nn.Dense(F, use_bias=bias).apply({"params": p}, x), p)


def test_linear_starts_with_lecuns_variance():
    ours = params.init(linear.linear_spec(400, 300), jax.random.key(0))["kernel"]
    theirs = nn.Dense(300).init(jax.random.key(1), jnp.zeros((1, 400)))["params"]["kernel"]
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.02)


def test_embedding_and_its_transpose():
    p = drawn(linear.embedding_spec(32, D, init=INIT))
    theirs = nn.Embed(32, D)
    ids = jax.random.randint(jax.random.key(5), (B, T), 0, 32)

    def oracle(method):
        return lambda p, x: theirs.apply({"params": {"embedding": p["table"]}}, x, method=method)

    np.testing.assert_array_equal(linear.embed(p, ids), oracle("__call__")(p, ids))
    same(linear.unembed, oracle("attend"), p)
    grads = [jax.grad(lambda p, f=f: jnp.sum(f(p, ids) ** 2))(p) for f in (linear.embed, oracle("__call__"))]
    np.testing.assert_allclose(*[g["table"] for g in grads], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_rms_norm(eps):
    p = drawn(norm.rms_spec(D))
    same(functools.partial(norm.rms, eps=eps), lambda p, x: nn.RMSNorm(epsilon=eps).apply({"params": p}, x), p)


@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_layer_norm(eps):
    p = drawn(norm.layer_spec(D))
    same(functools.partial(norm.layer, eps=eps), lambda p, x: nn.LayerNorm(epsilon=eps).apply({"params": p}, x), p)


@pytest.mark.parametrize("ours", [norm.rms, norm.layer])
def test_norms_of_bfloat16_are_taken_in_float32(ours):
    p = drawn(norm.layer_spec(D))
    half = (100 + X).astype(jnp.bfloat16)
    got = ours(p, half)
    assert got.dtype == jnp.bfloat16
    # Rounding happens once, at the end: 8 bits of mantissa are 0.4 %.
    want = np.asarray(ours(p, half.astype(jnp.float32)))
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=5e-3, atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_rope(theta):
    """Flax rotates pairs (i, i + head_dim/2) too. The positions belong to several documents, so
    they are no plain range."""
    positions = jnp.array([[*range(5), *range(7)], [*range(100, 112)]])
    x = jax.random.normal(jax.random.key(3), (B, T, H, h))
    ours = position.rope(x, position.rope_angles(positions, h, theta=theta))
    theirs = jax.vmap(nnx.RoPE(theta))(x.swapaxes(1, 2), positions).swapaxes(1, 2)  # Flax: (..., T, head_dim)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_rope_makes_scores_depend_on_distance_alone():
    q, k = jax.random.normal(jax.random.key(4), (2, 1, T, 1, h))

    def scores(offset):
        angles = position.rope_angles(jnp.arange(T)[None] + offset, h)
        return jnp.einsum("btnh,bsnh->ts", position.rope(q, angles), position.rope(k, angles))

    np.testing.assert_allclose(scores(0), scores(1000), atol=1e-3)


def test_rope_far_out_is_exact_in_bfloat16_models():
    """The angles are float32 whatever the input is."""
    far = jnp.full((1, 1), 4097)
    x = jnp.ones((1, 1, 1, h), jnp.bfloat16)
    got = position.rope(x, position.rope_angles(far, h)).astype(jnp.float32)
    np.testing.assert_allclose(got, position.rope(x.astype(jnp.float32), position.rope_angles(far, h)), atol=1e-2)


SEGMENTS = jnp.array([[1] * 5 + [2] * 7, [1] * 9 + [0] * 3])
WHERE = Where(jnp.array([[*range(5), *range(7)], [*range(12)]]), SEGMENTS)


def heads(num, seed):
    return jnp.asarray(np.float32(np.random.default_rng(seed).standard_normal((B, T, num, h))))


# Each implementation in both directions, and each number of heads with each implementation.
@pytest.mark.few(
    "plain-1-True", "plain-2-False", "plain-4-False", "chunked-1-False", "chunked-2-True", "chunked-4-False"
)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [1, K, H])
@pytest.mark.parametrize("implementation", ["plain", "chunked"])
def test_attend(implementation, kv_heads, causal, monkeypatch):
    """Flax's attention has the same mask, and keys and values repeated for each group of heads."""
    monkeypatch.setattr(blockwise, "CHUNK", 5)  # several blocks, the last one short
    q, k, v = heads(H, 1), heads(kv_heads, 2), heads(kv_heads, 3)
    mask = nn.combine_masks(
        SEGMENTS[:, None, :, None] == SEGMENTS[:, None, None, :],
        nn.make_causal_mask(SEGMENTS, dtype=bool) if causal else None,
    )

    def ours(q, k, v):
        return attention.attend(q, k, v, WHERE, WHERE, causal=causal, implementation=implementation)

    def theirs(q, k, v):
        k, v = (jnp.repeat(x, H // kv_heads, axis=2) for x in (k, v))
        return nn.dot_product_attention(q, k, v, mask=mask)

    results = [
        jax.jit(lambda *qkv, f=f: (f(*qkv), jax.grad(lambda *x: jnp.sum(f(*x) ** 2), (0, 1, 2))(*qkv)))(q, k, v)
        for f in (ours, theirs)
    ]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=2e-5), *results)


@pytest.mark.slow
@pytest.mark.parametrize("bias", [False, True])
def test_multi_head_attention(bias):
    """The test compares Flax's whole layer, projections included."""
    ours_spec = attention.spec(D, H, H, h, init=INIT, out_init=INIT, bias=bias)
    whole = Where(jnp.broadcast_to(jnp.arange(T), (B, T)), jnp.ones((B, T), jnp.int32))

    def ours(p, x):
        return attention.project_out(p, attention.attend(*attention.qkv(p, x), whole, whole))

    def theirs(p, x):
        names = {"query": "q", "key": "k", "value": "v", "out": "o"}
        tree = {flax: {"kernel": p[own]} | ({"bias": p[f"{own}_bias"]} if bias else {}) for flax, own in names.items()}
        layer = nn.MultiHeadDotProductAttention(H, qkv_features=H * h, out_features=D, use_bias=bias)
        return layer.apply({"params": tree}, x, mask=nn.make_causal_mask(jnp.ones((B, T))))

    same(ours, theirs, drawn(ours_spec))


def test_swiglu():
    p = drawn(feedforward.swiglu_spec(D, F, init=INIT, out_init=INIT))

    def theirs(p, x):
        def dense(name, x):
            return nn.Dense(p[name].shape[1], use_bias=False).apply({"params": {"kernel": p[name]}}, x)

        return dense("down", nn.silu(dense("gate", x)) * dense("up", x))

    same(feedforward.swiglu, theirs, p)


def test_gelu_mlp():
    p = drawn(feedforward.mlp_spec(D, F, init=INIT, out_init=INIT))

    def theirs(p, x):
        hidden = nn.gelu(nn.Dense(F).apply({"params": p["up"]}, x), approximate=True)
        return nn.Dense(D).apply({"params": p["down"]}, hidden)

    same(feedforward.gelu_mlp, theirs, p)
