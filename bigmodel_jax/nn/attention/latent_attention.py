"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).

All heads' keys and values are made of one short vector per token, the latent. A decode cache keeps
the latent and one rotary key, which all heads share.

Shapes: B batch, T query, S key, D embed, H heads, R latent, n dimensions of a head without
positions, r dimensions with rotary positions, w value dimensions of a head.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from bigmodel_jax.core import storage
from bigmodel_jax.core.params import Init, Param, ones, zeros
from bigmodel_jax.nn import kept, linear, norm, position
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.attention.attention import Implementation, Where
from bigmodel_jax.nn.taps import tap

EPS = 1e-6  # epsilon of the latents' norms, whatever norm_eps the model has


def spec(
    dim: int,
    num_heads: int,
    *,
    q_lora_rank: int,
    kv_lora_rank: int,
    nope_dim: int,
    rope_dim: int,
    v_dim: int,
    init: Init,
    out_init: Init,
) -> dict[str, Param | dict]:
    """kv_a (D, R), kv_norm, k_rope (D, r), kv_b (R, H, n + w), o (H, w, D), and the queries.

    The queries are q (D, H, n + r) or, with q_lora_rank > 0, pass a latent: q_a, q_norm, q_b.
    """
    heads = ("embed", "heads", "head_dim")  # the latent's axis is "embed", which is sharded over fsdp
    tree = {
        "kv_a": Param((dim, kv_lora_rank), ("embed", None), init),
        "kv_norm": {"scale": Param((kv_lora_rank,), (None,), ones())},
        "k_rope": Param((dim, rope_dim), ("embed", None), init),
        "kv_b": Param((kv_lora_rank, num_heads, nope_dim + v_dim), heads, init),
        "o": Param((num_heads, v_dim, dim), ("heads", "head_dim", "embed"), out_init),
    }
    if not q_lora_rank:
        return tree | {"q": Param((dim, num_heads, nope_dim + rope_dim), heads, init)}
    return tree | {
        "q_a": Param((dim, q_lora_rank), ("embed", None), init),
        "q_norm": {"scale": Param((q_lora_rank,), (None,), ones())},
        "q_b": Param((q_lora_rank, num_heads, nope_dim + rope_dim), heads, init),
    }


def queries(p: dict, x_BTD: jax.Array, angles: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The queries' part without positions (B, T, H, n), and the rotated part (B, T, H, r)."""
    if "q" in p:
        q = linear.project(x_BTD, p["q"])
    else:
        q = linear.project(norm.rms(p["q_norm"], linear.project(x_BTD, p["q_a"]), eps=EPS), p["q_b"])
    q, nope_dim = checkpoint_name(q, kept.QKV), q.shape[-1] - p["k_rope"].shape[-1]
    # DeepSeek rotates neighbouring dimensions (2i, 2i + 1) as pairs.
    return q[..., :nope_dim], position.rope(q[..., nope_dim:], angles, interleaved=True)


def latents(p: dict, x_BTD: jax.Array, angles: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """What a cache keeps: the latent (B, T, R), and the rotated key of all heads (B, T, r)."""
    latent = norm.rms(p["kv_norm"], checkpoint_name(linear.project(x_BTD, p["kv_a"]), kept.QKV), eps=EPS)
    k_rope = checkpoint_name(linear.project(x_BTD, p["k_rope"])[:, :, None], kept.QKV)
    k_rope = position.rope(k_rope, angles, interleaved=True)
    return latent, k_rope[:, :, 0]


def empty_cache(num_layers: int, batch_size: int, length: int, kv_lora_rank: int, rope_dim: int, dtype) -> dict:
    """The declaration of the latents (L, B, S, R) and of the shared keys (L, B, S, r)."""
    sizes, axes = {"latent": kv_lora_rank, "k_rope": rope_dim}, ("layers", "batch", "seq", None)
    return {
        name: Param((num_layers, batch_size, length, size), axes, zeros(), jnp.dtype(dtype).name)
        for name, size in sizes.items()
    }


def update_cache(cache: dict, kv: tuple[jax.Array, jax.Array], index: jax.Array) -> dict:
    """One layer's cache, latent (B, S, R) and k_rope (B, S, r), with the new tokens' at `index`."""
    new = {"latent": kv[0], "k_rope": kv[1]}
    return {
        name: jax.lax.dynamic_update_slice(cache[name], x.astype(cache[name].dtype), (0, index, 0))
        for name, x in new.items()
    }


def attend(
    p: dict,
    q: tuple[jax.Array, jax.Array],
    kv: tuple[jax.Array, jax.Array],
    q_where: Where,
    k_where: Where,
    *,
    scale: float,
    absorb: bool = False,
    implementation: Implementation = "auto",
) -> jax.Array:
    """The heads' outputs, projected, (B, T, D).

    q: as from `queries`. kv: as from `latents`, for S keys. absorb: compute in the space of the
    latents, without keys and values per head. The result is the same; the cost suits few queries
    and many keys (see `absorbing_is_cheaper`).
    """
    (q_nope, q_rope), (latent, k_rope) = q, kv
    n = q_nope.shape[-1]
    if absorb:
        # q . (K c) = (q K) . c, and the weighted sum of V c is V times the weighted sum of c.
        kv_b = storage.dense(p["kv_b"], q_nope.dtype)
        q_latent = jnp.einsum("bthn,rhn->bthr", q_nope, kv_b[..., :n])
        q_all = jnp.concatenate([q_latent, q_rope], axis=-1)
        # (B, S, 1, R + r): all heads share one key, which holds the latent itself.
        k = jnp.concatenate([latent, k_rope], axis=-1)[:, :, None]
        out = attention.attend(
            q_all, k, latent[:, :, None], q_where, k_where, scale=scale, implementation=implementation
        )
        out = jnp.einsum("bthr,rhw->bthw", out, kv_b[..., n:])
    else:
        kv_heads = linear.project(latent, p["kv_b"])
        # The rotary key has no axis of heads, so it is repeated: (B, S, H, r).
        shared = jnp.broadcast_to(k_rope[:, :, None], (*kv_heads.shape[:-1], k_rope.shape[-1]))
        k = jnp.concatenate([kv_heads[..., :n], shared], axis=-1)
        q_all = jnp.concatenate([q_nope, q_rope], axis=-1)
        out = attention.attend(
            q_all, k, kv_heads[..., n:], q_where, k_where, scale=scale, implementation=implementation
        )
    return tap("attention", linear.project(out, p["o"], num_dims=2))


def absorbing_is_cheaper(num_queries: int, kv_lora_rank: int, nope_dim: int, v_dim: int) -> bool:
    """Whether `num_queries` queries against very many keys take fewer products with `absorb`.

    Without it, each key and head costs R (n + w) products to make key and value, and (n + w) per
    query. With it, each query costs 2 R. The rotary part is left out on both sides. For
    DeepSeek-V3, absorbing is cheaper up to 170 queries. A symbolic number of queries, in an
    exported program, counts as many.
    """
    if not isinstance(num_queries, int):
        return False
    made = kv_lora_rank * (nope_dim + v_dim)
    return num_queries * 2 * kv_lora_rank < num_queries * (nope_dim + v_dim) + made
