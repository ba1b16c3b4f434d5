"""XLNet: tokens predicted in a random order, each from the tokens before it in that order.

Yang et al., arXiv:1906.08237. Two streams share all weights. In the content stream a token sees
itself; the query stream knows a token's place and not the token. Attention uses relative distances,
as in Transformer-XL (arXiv:1901.02860), without its memory.

Shapes: B batch, T tokens, P predicted places, Q queries, S keys, D embed, H heads, h head_dim, R
distances, V vocab, L layers.
"""

import dataclasses
import functools
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, normal, zeros
from bigmodel_jax.core.ranges import Count, Depth, NonNegative, ShareBelowOne
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import bert
from bigmodel_jax.models.base import POST_NORM, Entry, Model, ModelConfig, Out, parts_of
from bigmodel_jax.models.compute import StackCompute
from bigmodel_jax.models.decoder import where
from bigmodel_jax.models.sizes import Multiple
from bigmodel_jax.nn import feedforward, linear, norm
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.attention.attention import Where
from bigmodel_jax.nn.cross_entropy import MASKED
from bigmodel_jax.nn.dropout import dropout
from bigmodel_jax.nn.head import Head


@dataclasses.dataclass(frozen=True)
class XLNetConfig(ModelConfig):
    """XLNet (Yang et al., arXiv:1906.08237); defaults: xlnet-base-cased.

    The reference implementation is transformers' `XLNetLMHeadModel`. The published models were
    trained with dropout 0.1.
    """

    vocab_size: Count = 32_000  # tokens in the vocabulary
    num_layers: Depth = 12  # number of blocks
    embed_dim: Count = 768  # width of the residual stream
    num_heads: Count = 12  # attention heads of a layer
    mlp_dim: Count = 3072  # hidden width of the feed-forward layer
    max_seq_len: Count = 512  # tokens in pretraining; no parameter depends on it
    head: Literal["none", "permuted_lm"] = "permuted_lm"  # none: the model returns the hidden states
    norm_eps: NonNegative = 1e-12  # added to the variance in every norm
    init_std: NonNegative = 0.02  # standard deviation of the initial weights
    dropout: ShareBelowOne = 0.0  # dropout rate in training
    compute: StackCompute = StackCompute()

    SIZES: ClassVar[tuple] = (*bert.SIZES, Multiple("embed_dim", 2, "distances are sines and cosines in pairs"))

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    def inputs(self):
        return {"tokens": None}

    def no_mup(self, depth):
        return POST_NORM if depth else ""

    def make(self) -> Model:
        return Model(spec(self), parts_of(self, enter, block, leave))

    @classmethod
    def tiny(cls) -> "XLNetConfig":
        return cls(vocab_size=64, num_layers=2, embed_dim=32, num_heads=4, mlp_dim=64, max_seq_len=32)


def block_spec(cfg: XLNetConfig) -> params.Tree:
    """One post-norm layer: q, k, v, distance (D, H, h), o (H, h, D), biases (H, h), and an MLP."""
    init, D, H, h = normal(cfg.init_std), cfg.embed_dim, cfg.num_heads, cfg.head_dim
    per_head = Param((H, h), ("heads", "head_dim"), init, decay=False)
    return {
        "attn": {
            **{name: Param((D, H, h), ("embed", "heads", "head_dim"), init) for name in ("q", "k", "v", "distance")},
            "o": Param((H, h, D), ("heads", "head_dim", "embed"), init),
            # Vectors added to every query: for contents, for distances and for token types.
            "content_bias": per_head,
            "distance_bias": per_head,
            "type_bias": per_head,
            # One vector stands for a key of the same token type, the other for a key of another
            # type.
            "types": Param((2, H, h), (None, "heads", "head_dim"), init, decay=False),
        },
        "attn_norm": norm.layer_spec(D),
        "mlp": feedforward.mlp_spec(D, cfg.mlp_dim, init=init, out_init=init),
        "mlp_norm": norm.layer_spec(D),
    }


def spec(cfg: XLNetConfig) -> params.Tree:
    """The table (V, D), the query stream's first state (D,), the layers, and the bias (V,)."""
    init, D = normal(cfg.init_std), cfg.embed_dim
    tree = {
        "embed": linear.embedding_spec(cfg.vocab_size, D, init=init),
        "query": Param((D,), ("embed",), init),
        "layers": params.stack(block_spec(cfg), cfg.num_layers),
    }
    return tree | ({"lm": {"bias": Param((cfg.vocab_size,), ("vocab",), zeros())}} if cfg.head == "permuted_lm" else {})


class Stream(NamedTuple):
    """The inputs of a stream that are the same in every layer.

    where: where the queries stand. rows: (B, Q, S) int, rows of the distance table. other_type: (B,
    Q, S) bool, whether query and key have different token types. seen: (B, Q, S) bool, which keys
    the order of prediction lets a query see; None: all.
    """

    where: Where
    rows: jax.Array
    other_type: jax.Array | None
    seen: jax.Array | None


def distances(length: int, dim: int) -> np.ndarray:
    """Returns (R, D) float32: sines, then cosines, of the distances 1 - length .. length - 1."""
    frequency = 1 / 10_000.0 ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    angle = np.arange(1 - length, length, dtype=np.float32)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)


def streams(batch: dict) -> tuple[Stream, Stream | None]:
    """The content stream, a query per token, and the query stream, a query per predicted place."""
    here, _, _ = where(batch, None)
    T = batch["tokens"].shape[1]
    rows = jnp.clip(here.positions[:, :, None] - here.positions[:, None, :], 1 - T, T - 1) + T - 1
    types, order, places = (batch.get(name) for name in ("token_types", "order", "places"))
    other = None if types is None else types[:, :, None] != types[:, None, :]
    if order is None:
        return Stream(here, rows, other, None), None
    # Tokens of order 0 are given, and all tokens see them. The token of order n is predicted n-th,
    # from the tokens of lower orders.
    before = (order[:, None, :] == 0) | (order[:, None, :] < order[:, :, None])
    content = Stream(here, rows, other, before | jnp.eye(T, dtype=bool))

    def at_places(x):
        return None if x is None else jnp.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=1)

    query = Stream(Where(*map(at_places, here)), *map(at_places, (rows, other, before)))
    return content, query


def attend(cfg: XLNetConfig, p, x_BQD, stream: Stream, k, v, distance_k, keys: Where):
    """Attention of one stream to the contents, with its output projection, (B, Q, D).

    k, v: (B, S, H, h). distance_k: (R, H, h).
    """
    q, scale = linear.project(x_BQD, p["q"]), cfg.head_dim**-0.5
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    bias = einsum("bqhd,rhd->bhqr", q + p["distance_bias"], distance_k)
    bias = jnp.take_along_axis(bias, stream.rows[:, None], axis=-1)
    if stream.other_type is not None:
        same, other = jnp.unstack(einsum("bqhd,nhd->nbhq", q + p["type_bias"], p["types"])[..., None])
        bias += jnp.where(stream.other_type[:, None], other, same)
    bias *= scale
    if stream.seen is not None:
        bias = jnp.where(stream.seen[:, None], bias, MASKED)
    bias = constrain(bias, "batch", "heads", "seq", None)
    h = attention.attend(q + p["content_bias"], k, v, stream.where, keys, causal=False, scale=scale, bias=bias)
    return attention.project_out(p, h)


def block(cfg: XLNetConfig, p, x, rng, content: Stream, query: Stream | None, table, *, train: bool):
    """One layer; x: the content stream (B, T, D), and the query stream (B, P, D) or None.

    The query stream attends to the contents as they are before this layer.
    """
    x_BTD, x_BPD = x
    k, v, distance_k = (linear.project(y, p["attn"][n]) for y, n in ((x_BTD, "k"), (x_BTD, "v"), (table, "distance")))
    rngs = (None, None) if rng is None else jax.random.split(rng)

    def one(stream, x, rng):
        def attended(p, x):
            return attend(cfg, p, x, stream, k, v, distance_k, content.where)

        return bert.layer(cfg, p, x, rng, attended)[0]

    return (one(content, x_BTD, rngs[0]), None if query is None else one(query, x_BPD, rngs[1])), None


def enter(cfg: XLNetConfig, p, batch, *, rng, train: bool, cache) -> Entry:
    """batch: tokens (B, T) and, optionally, positions, segment_ids, token_types (B, T).

    order (B, T) int32 is each token's turn to be predicted, 0 = given; places (B, P) int32 are the
    places to predict. With both, the model predicts the tokens at these places, and no token sees
    itself. Without them, all tokens see each other, and the model has an output for each token.
    """
    embed_rng, query_rng, layer_rngs = bert.split(cfg, rng)
    content, query = streams(batch)
    x_BTD = constrain(
        dropout(cfg.dropout, linear.embed(p["embed"], batch["tokens"]), embed_rng), "batch", "seq", "embed"
    )
    x_BPD = None
    if query is not None:
        x_BPD = jnp.broadcast_to(p["query"], (*batch["places"].shape, cfg.embed_dim))
        x_BPD = constrain(dropout(cfg.dropout, x_BPD, query_rng), "batch", "seq", "embed")
    table = jnp.asarray(distances(x_BTD.shape[1], cfg.embed_dim), x_BTD.dtype)
    return Entry((x_BTD, x_BPD), layer_rngs, (content, query), (table,))


def leave(cfg: XLNetConfig, p, entry: Entry, x, ys, batch, *, train: bool) -> Out:
    """Logits (B, P, V) or (B, T, V) float32; without a head {"hidden": the states}."""
    x_BTD, x_BPD = x
    hidden = x_BTD if x_BPD is None else x_BPD
    if cfg.head == "none":
        return Out({"hidden": hidden})
    head = Head(hidden, p["embed"]["table"], p["lm"]["bias"])
    return Out(head.logits(), head=head)


PRESETS = {
    "xlnet-base-cased": XLNetConfig(),
    "xlnet-large-cased": XLNetConfig(num_layers=24, embed_dim=1024, num_heads=16, mlp_dim=4096),
}
