"""Multi-token prediction: modules on top of a decoder that predict one token further each (DeepSeek-V3,
arXiv:2412.19437, section 2.2). They make the decoder's own representation plan ahead, and are left out at inference.

Shapes: B batch, T tokens, D embed, V vocab, M modules.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bigmodel_jax.core.params import Init, Tree
from bigmodel_jax.nn import linear, norm, stack
from bigmodel_jax.nn.head import Head, cross_entropy


def spec(block_spec: Tree, dim: int, *, init: Init) -> Tree:
    """One module: a block, and what makes its input of a token and a hidden state, each normed; the output, too."""
    merge = linear.linear_spec(2 * dim, dim, axes=("embed", None), init=init)
    return block_spec | {"merge": merge} | {n: norm.rms_spec(dim) for n in ("embed_norm", "hidden_norm", "norm")}


def hidden(
    p: Tree,
    embed: Callable,
    block: Callable,
    tokens_BT: jax.Array,
    hidden_BTD: jax.Array,
    segments_BT: jax.Array,
    *,
    eps: float,
    remat: stack.Remat = "none",
    unroll: bool = False,
) -> tuple[jax.Array, Tree]:
    """(M, B, T, D) to unembed, and the blocks' further outputs, stacked; p: M stacked modules.

    Module k (from 1) reads at place i the state before it at i and the token at i + k, so its logits are for i + k + 1.
    block(p, x, segments) -> (x, further); segments are 0 where i + k lies in no or another document. Places before i
    are then never 0, so that what a place with a token sees is as if the document stood alone.
    """

    def body(p, h, xs):
        tokens, segments = xs
        parts = norm.rms(p["embed_norm"], embed(tokens), eps=eps), norm.rms(p["hidden_norm"], h, eps=eps)
        h, further = block(p, linear.linear(p["merge"], jnp.concatenate(parts, axis=-1)), segments)
        h = norm.rms(p["norm"], h, eps=eps)
        return h, (h, further)

    ahead = range(1, len(p["norm"]["scale"]) + 1)
    xs = jnp.stack([shift(tokens_BT, k) for k in ahead]), jnp.stack([segments_ahead(segments_BT, k) for k in ahead])
    return stack.sequential(body, p, hidden_BTD, xs, remat=remat, unroll=unroll)[1]


def shift(x_BT: jax.Array, n: int) -> jax.Array:
    """What stands n places further on; 0 past the end."""
    return jnp.pad(x_BT[:, n:], ((0, 0), (0, min(n, x_BT.shape[1]))))


def segments_ahead(segments_BT: jax.Array, n: int) -> jax.Array:
    """Each place's segment where it holds n places further on, else 0."""
    return jnp.where(shift(segments_BT, n) == segments_BT, segments_BT, 0)


def loss(head: Head, targets_BT: jax.Array, weights_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Cross-entropy summed over the targets with weight that a module can predict, averaged over modules, divided by
    the weight of all targets: targets[i] follows the token at i, as for the decoder itself. head.x: (M, B, T, D)."""
    ahead = range(1, len(head.x) + 1)
    targets = jnp.stack([shift(targets_BT, k) for k in ahead])
    weights = jnp.stack([shift(weights_BT, k) * (segments_ahead(segments_BT, k) > 0) for k in ahead])
    nats, _, _ = cross_entropy(head, targets)
    return jnp.sum(nats * weights) / len(ahead) / jnp.maximum(weights_BT.sum(), 1.0)
