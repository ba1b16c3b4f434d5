"""Multi-token prediction: modules on top of a decoder, each predicting one token further.

DeepSeek-V3, arXiv:2412.19437, section 2.2. The modules make the decoder's own states plan ahead;
inference omits them.

Shapes: B batch, T tokens, D embed, V vocab, M modules.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bigmodel_jax.core.metrics import divisor
from bigmodel_jax.core.params import Init, Tree
from bigmodel_jax.nn import linear, norm, stack
from bigmodel_jax.nn.head import Head, cross_entropy


def spec(block_spec: Tree, dim: int, *, init: Init) -> Tree:
    """One module: a block, three norms, and "merge" (2 D, D) of a token and a hidden state."""
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
    """Returns (states (M, B, T, D) that the head unembeds, the other outputs of the blocks,
    stacked).

    p: M stacked modules. Modules count from 1. At place i, module k reads the previous module's
    state at i and the token at i + k. Its logits predict the token at i + k + 1. block(p, x,
    segments) -> (x, further); segments are 0 where place i + k is outside the document. Such places
    end a document, so that all other places compute what they would if the document stood alone.
    """

    def body(p, h, xs):
        tokens, segments = xs
        parts = norm.rms(p["embed_norm"], embed(tokens), eps=eps), norm.rms(p["hidden_norm"], h, eps=eps)
        h, further = block(p, linear.linear(p["merge"], jnp.concatenate(parts, axis=-1)), segments)
        h = norm.rms(p["norm"], h, eps=eps)
        return h, (h, further)

    # Module k reads the tokens k places further on.
    ahead = range(1, len(p["norm"]["scale"]) + 1)
    xs = jnp.stack([shift(tokens_BT, k) for k in ahead]), jnp.stack([segments_ahead(segments_BT, k) for k in ahead])
    return stack.sequential(body, p, hidden_BTD, xs, remat=remat, unroll=unroll)[1]


def shift(x_BT: jax.Array, n: int) -> jax.Array:
    """x (B, T) moved n places to the left; 0 past the end."""
    return jnp.pad(x_BT[:, n:], ((0, 0), (0, min(n, x_BT.shape[1]))))


def segments_ahead(segments_BT: jax.Array, n: int) -> jax.Array:
    """Returns (B, T): each place's segment if the place n further on belongs to it, else 0."""
    return jnp.where(shift(segments_BT, n) == segments_BT, segments_BT, 0)


def loss(head: Head, targets_BT: jax.Array, weights_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """The modules' mean cross-entropy, divided by the weight of all the decoder's targets.

    Only targets that a module can predict count. targets[i] follows the token at i, as for the
    decoder itself. head.x: (M, B, T, D); all others (B, T).
    """
    ahead = range(1, len(head.x) + 1)
    targets = jnp.stack([shift(targets_BT, k) for k in ahead])
    # A target beyond the end of its document has weight 0.
    weights = jnp.stack([shift(weights_BT, k) * (segments_ahead(segments_BT, k) > 0) for k in ahead])
    nats, _, _ = cross_entropy(head, targets)
    return jnp.sum(nats * weights) / len(ahead) / divisor(weights_BT.sum())
