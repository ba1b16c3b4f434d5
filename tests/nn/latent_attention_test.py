"""Both ways of computing latent attention, and what its cache holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.nn import position
from bigmodel_jax.nn.attention import latent_attention
from bigmodel_jax.nn.attention.attention import Where

D, H, R, N, ROPE, W, T = 32, 4, 16, 8, 4, 6, 9


def setup(q_lora_rank, std=0.3):
    init = params.normal(std)
    spec = latent_attention.spec(
        D, H, q_lora_rank=q_lora_rank, kv_lora_rank=R, nope_dim=N, rope_dim=ROPE, v_dim=W, init=init, out_init=init
    )
    x = jax.random.normal(jax.random.key(1), (2, T, D))
    segments = jnp.array([[1] * 4 + [2] * 5, [1] * 7 + [0] * 2])
    at = Where(jnp.broadcast_to(jnp.arange(T), (2, T)), segments)
    return params.init(spec, jax.random.key(0)), x, at


def run(p, x, at, absorb):
    angles = position.rope_angles(at.positions, ROPE)
    q, kv = latent_attention.queries(p, x, angles), latent_attention.latents(p, x, angles)
    return latent_attention.attend(p, q, kv, at, at, scale=0.3, absorb=absorb)


@pytest.mark.slow
@pytest.mark.parametrize("q_lora_rank", [0, 24])
def test_absorbing_is_the_same_function(q_lora_rank):
    p, x, at = setup(q_lora_rank)

    def loss(p, x, absorb):
        out = run(p, x, at, absorb)
        return jnp.sum(jnp.square(out)), out

    def gradients(absorb):
        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)(p, x, absorb)

    (expanded_grads, expanded), (absorbed_grads, absorbed) = gradients(False), gradients(True)
    assert expanded.std() > 0.1
    np.testing.assert_allclose(absorbed, expanded, atol=1e-5)
    for a, b in zip(jax.tree.leaves(absorbed_grads), jax.tree.leaves(expanded_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max() + 1e-5)


@pytest.mark.slow
def test_is_the_formula_of_the_paper():
    """The reference is arXiv:2405.04434, eq. 37-47, one query at a time in numpy."""
    p, x, at = setup(24)
    p = jax.tree.map(np.asarray, p)
    ours = jax.jit(run, static_argnums=3)(p, x, at, False)

    def rms(v):
        return v / np.sqrt(np.mean(v**2, -1, keepdims=True) + 1e-6)

    def turned(v, n):
        pairs = v.reshape(*v.shape[:-1], -1, 2) @ np.array([1, 1j])
        pairs = pairs * np.exp(1j * n * 10_000.0 ** (-np.arange(0, ROPE, 2) / ROPE))
        return np.stack([pairs.real, pairs.imag], -1).reshape(v.shape)

    row, t, start = np.asarray(x)[0], 8, 4  # the second document of the first row
    c = rms(row @ p["kv_a"])
    q = np.einsum("r,rhd->hd", rms(row[t] @ p["q_a"]), p["q_b"])
    q = np.concatenate([q[:, :N], turned(q[:, N:], t)], -1)
    logits, values = [], []
    for s in range(start, t + 1):
        kv = np.einsum("r,rhd->hd", c[s], p["kv_b"])
        k = np.concatenate([kv[:, :N], np.tile(turned(row[s] @ p["k_rope"], s), (H, 1))], -1)
        logits.append(0.3 * (q * k).sum(-1))
        values.append(kv[:, N:])
    probs = np.exp(logits) / np.exp(logits).sum(0)
    out = np.einsum("sh,shw,hwd->d", probs, values, p["o"])
    np.testing.assert_allclose(ours[0, t], out, atol=1e-5)


def test_the_cache_is_small():
    """DeepSeek-V3 keeps 576 numbers per token and layer, where 128 heads of keys and values would
    need 40,960."""
    cache = latent_attention.empty_cache(61, 1, 1, 512, 64, jnp.bfloat16)
    assert params.count(cache) == 61 * 576


def test_absorbing_suits_few_queries():
    sizes = (512, 128, 128)
    assert latent_attention.absorbing_is_cheaper(1, *sizes)
    assert latent_attention.absorbing_is_cheaper(170, *sizes)
    assert not latent_attention.absorbing_is_cheaper(171, *sizes)
