"""Splash, Pallas's sparse flash attention for TPU, on one device's part of the batch and the heads.

Shapes: B batch, T query, S key, H heads, K kv heads, h head_dim, w value dimensions.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from bigmodel_jax.nn.attention.blockwise import LANES
from bigmodel_jax.nn.attention.visibility import KEPT, Rule, Where

BLOCK = 512  # queries or keys of a block, as in MaxText


def attend(
    rule: Rule, q, k, v, sinks, q_where: Where, k_where: Where, local: jax.Array | None, *, interpret: bool = False
) -> jax.Array:
    """Returns (B, T, H, w) for one device, in a shard_map.

    Blocks that the rule hides from all queries are skipped. q: (B, T, H, h), scaled. k (B, S, K, h)
    and v (B, S, K, w) are not repeated for the heads that share them. local: () bool, whether this
    layer has the window. interpret: run on any platform.
    """
    T, S = q.shape[1], k.shape[1]
    q, q_segments = _lanes(q, q_where)
    k, k_segments = _lanes(k, k_where)
    v, _ = _lanes(v, k_where)
    segments = splash_kernel.SegmentIds(q_segments, k_segments)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))

    def run(window: int):
        shape = (q.shape[2], k.shape[2])
        one = kernel(rule._replace(window=window), q.shape[1], shape, interpret, residual_checkpoint_name=KEPT)
        return jax.vmap(one, in_axes=(0, 0, 0, 0, None))(q, k, v, segments, sinks)

    # A kernel's mask is static, so a layer's flag selects between two kernels.
    if rule.window >= S or local is None:
        out = run(0 if rule.window >= S else rule.window)
    else:
        out = jax.lax.cond(local, lambda: run(rule.window), lambda: run(0))
    return out.swapaxes(1, 2)[:, :T]


def _lanes(x, where):
    """x and its segments, with dimension 1 padded to a multiple of LANES.

    The padding has a segment of its own.
    """
    missing = -x.shape[1] % LANES
    segments = jnp.pad(where.segments, ((0, 0), (0, missing)), constant_values=-1)
    return jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))), segments


def kernel(rule: Rule, num_heads: int, shape: tuple[int, int], interpret: bool, **options):
    """Splash for one row of the batch: q (H, T, h), k (K, S, h), v (K, S, w).

    shape: (T, S). options: those of `make_splash_mha`.
    """
    before = rule.window - 1 if rule.window else None
    if before is None and not rule.causal:
        mask = splash_mask.FullMask(shape)
    elif before is None:
        mask = splash_mask.CausalMask(shape)
    else:
        mask = splash_mask.LocalMask(shape, (before, 0 if rule.causal else before), 0)
    q, kv = (next(n for n in (BLOCK, 256, LANES) if length % n == 0) for length in shape)
    # The fused backward pass would keep one dq per block of keys, so that its memory would be
    # quadratic in the length.
    sizes = {"block_q_dkv": q, "block_kv_dkv": kv, "block_kv_dkv_compute": kv, "block_q_dq": q, "block_kv_dq": kv}
    return splash_kernel.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * num_heads),
        block_sizes=splash_kernel.BlockSizes(block_q=q, block_kv=kv, block_kv_compute=kv, **sizes),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=rule.softcap or None,
        interpret=interpret,
        **options,
    )
