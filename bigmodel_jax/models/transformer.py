"""The Transformer: an encoder-decoder with sinusoidal positions and post-norm.

Vaswani et al., arXiv:1706.03762. The tokens of both sides share one embedding table, which is also
the head. Embeddings are multiplied by sqrt(embed_dim). The layout is that of Marian, whose
published translation models (opus-mt) are this model with swish and a bias on the logits. Attention
has biases. A position's vector has sines in its first half and cosines in its second. The paper
interleaves them, which makes no difference to learned weights. BART (bart.py) is this model with
learned positions and normed embeddings.

Shapes: B batch, T decoder tokens, S encoder tokens, D embed, H heads, h head_dim, F mlp, V vocab, L
layers.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, normal, zeros
from bigmodel_jax.core.ranges import Count, CountOrZero, Depth, NonNegative, ShareBelowOne
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import decoder, encoder_decoder
from bigmodel_jax.models.base import POST_NORM, Model, ModelConfig, Out
from bigmodel_jax.models.compute import Compute
from bigmodel_jax.models.encoder_decoder import attend_memory, check_batch, encoder_where, make_cache
from bigmodel_jax.models.sizes import Divides, Multiple
from bigmodel_jax.nn import feedforward, linear, norm, position, stack
from bigmodel_jax.nn.activations import ACTIVATIONS, Activation
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.dropout import dropout
from bigmodel_jax.nn.head import Head


@dataclasses.dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """The original Transformer (Vaswani et al., arXiv:1706.03762).

    The reference implementation is transformers' `MarianMTModel`. The defaults are those of the
    paper's base model, with its shared English-German vocabulary.
    """

    vocab_size: Count = 37_000  # tokens in the vocabulary
    num_layers: Depth = 6  # layers of the encoder
    num_decoder_layers: Depth = 6  # layers of the decoder
    embed_dim: Count = 512  # width of the residual stream
    num_heads: Count = 8  # attention heads of a layer
    mlp_dim: Count = 2048  # hidden width of the feed-forward layer
    max_seq_len: Count = 1024  # longest sequence, in tokens
    activation: Activation = "relu"  # activation of the feed-forward layer
    scale_embedding: bool = True  # whether embeddings are multiplied by sqrt(embed_dim)
    logits_bias: bool = False  # whether the logits have a bias, as in Marian's models
    init_std: NonNegative = 0.02  # standard deviation of the initial weights
    dropout: ShareBelowOne = 0.0  # dropout rate of embeddings and of what each half of a layer adds; the paper has 0.1
    decoder_start_token_id: CountOrZero = 0  # token that the decoder's input begins with
    eos_token_id: CountOrZero = 0  # token that ends a text
    compute: Compute = Compute()

    SIZES: ClassVar[tuple] = (
        Divides("num_heads", "embed_dim"),
        Multiple("embed_dim", 2, "half of it are sines, half cosines"),
        *encoder_decoder.SIZES,
    )
    LEARNED: ClassVar[bool] = False  # whether each side has a table of positions and a norm of its embeddings
    FIRST_POSITION: ClassVar[int] = 0  # the row of the table of positions for a text's first token
    BIAS_KIND: ClassVar[params.Kind] = "trained"  # the kind of the logits' bias

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    def inputs(self):
        return {"encoder_tokens": None, "tokens": None}

    def no_mup(self, depth):
        if self.scale_embedding:
            return "multiplies its embeddings by the root of a width itself (scale_embedding)"
        return POST_NORM if depth else ""

    def make(self) -> Model:
        return Model(
            spec=spec(self),
            apply=functools.partial(apply, self),
            make_cache=functools.partial(make_cache, self),
            decoder_start=self.decoder_start_token_id,
        )

    @classmethod
    def tiny(cls) -> "TransformerConfig":
        return cls(
            vocab_size=64, num_layers=2, num_decoder_layers=2, embed_dim=32, num_heads=4, mlp_dim=64, max_seq_len=32
        )


def block_spec(cfg: TransformerConfig, cross: bool) -> params.Tree:
    """One post-norm layer: attention, with `cross` also cross-attention, and an MLP (D, F)."""
    init = normal(cfg.init_std)
    D, H, h = cfg.embed_dim, cfg.num_heads, cfg.head_dim
    attend = attention.spec(D, H, H, h, init=init, out_init=init, bias=True)
    tree = {"attn": attend, "attn_norm": norm.layer_spec(D)}
    if cross:
        tree |= {"cross": attend, "cross_norm": norm.layer_spec(D)}
    return tree | {
        "mlp": feedforward.mlp_spec(D, cfg.mlp_dim, init=init, out_init=init),
        "mlp_norm": norm.layer_spec(D),
    }


def spec(cfg: TransformerConfig) -> params.Tree:
    """The table (V, D), both stacks of layers, and with logits_bias a bias (V,).

    With LEARNED each side also has positions (FIRST_POSITION + max_seq_len, D) and a norm.
    """
    init, D = normal(cfg.init_std), cfg.embed_dim
    tree = {
        "embed": linear.embedding_spec(cfg.vocab_size, D, init=init),
        "encoder": params.stack(block_spec(cfg, cross=False), cfg.num_layers),
        "decoder": params.stack(block_spec(cfg, cross=True), cfg.num_decoder_layers),
    }
    for side in ("encoder", "decoder") if cfg.LEARNED else ():
        tree[f"{side}_positions"] = Param((cfg.FIRST_POSITION + cfg.max_seq_len, D), (None, "embed"), init)
        tree[f"{side}_embed_norm"] = norm.layer_spec(D)
    bias = Param((cfg.vocab_size,), ("vocab",), zeros(), kind=cfg.BIAS_KIND)
    return tree | {"logits_bias": bias} if cfg.logits_bias else tree


def block(cfg: TransformerConfig, p, x_BTD, caches, rng, q_where, k_where, index, causal, memory_BSD, memory_where):
    """One layer of either stack: (x (B, T, D), (its keys and values, the memory's)).

    caches: (own, memory). They, and the second result, are None outside decoding.
    """
    rngs = [None] * 3 if rng is None else jax.random.split(rng, 3)
    own, cached = caches

    def add(x, y, scale, rng):
        return constrain(norm.layer(scale, x + dropout(cfg.dropout, y, rng)), "batch", "seq", "embed")

    q, k, v = attention.qkv(p["attn"], x_BTD)
    k, v = decoder.update_cache(own, k, v, index)
    h = attention.attend(q, k, v, q_where, k_where, causal=causal, implementation=cfg.compute.attention)
    x_BTD = add(x_BTD, attention.project_out(p["attn"], h), p["attn_norm"], rngs[0])
    kv = None
    if "cross" in p:
        options = {"implementation": cfg.compute.attention}
        h, kv = attend_memory(p["cross"], x_BTD, memory_BSD, cached, q_where, memory_where, **options)
        x_BTD = add(x_BTD, h, p["cross_norm"], rngs[1])
    h = feedforward.mlp(p["mlp"], x_BTD, ACTIVATIONS[cfg.activation])
    return add(x_BTD, h, p["mlp_norm"], rngs[2]), None if own is None else ({"k": k, "v": v}, kv)


def embed(cfg: TransformerConfig, p, side: str, tokens, positions):
    """Embeds one side: tokens and positions (B, T) -> (B, T, D)."""
    x_BTD = linear.embed(p["embed"], tokens)
    x_BTD = x_BTD * cfg.embed_dim**0.5 if cfg.scale_embedding else x_BTD
    if cfg.LEARNED:
        x_BTD = x_BTD + jnp.take(p[f"{side}_positions"], cfg.FIRST_POSITION + positions, axis=0)
        return norm.layer(p[f"{side}_embed_norm"], x_BTD)
    sinusoids = jnp.asarray(position.sinusoids(cfg.max_seq_len, cfg.embed_dim), x_BTD.dtype)
    return x_BTD + jnp.take(sinusoids, positions, axis=0)


def run(cfg: TransformerConfig, p, side: str, tokens, rng, caches, q_where, *where):
    """One side's stack: tokens (B, T) -> (states (B, T, D), the layers' keys and values).

    side: "encoder" or "decoder".
    """
    layers = p[side]
    num_layers = stack.num_layers(layers)
    rngs = None if rng is None else jax.random.split(rng, num_layers + 1)
    x_BTD = embed(cfg, p, side, tokens, q_where.positions)
    x_BTD = constrain(dropout(cfg.dropout, x_BTD, None if rngs is None else rngs[0]), "batch", "seq", "embed")

    k_where, *fixed, memory_BSD, memory_where = where

    def body(layer, x, xs, q_where, k_where, *memory):
        return block(cfg, layer, x, *xs, q_where, k_where, *fixed, *memory)

    xs = (caches, None if rngs is None else rngs[1:])
    shared = (q_where, k_where, memory_BSD, memory_where)
    return stack.run(body, layers, x_BTD, xs, shared=shared, remat=cfg.compute.remat, unroll=cfg.compute.unroll)


def apply(cfg: TransformerConfig, p, batch, *, rng=None, train=False, cache=None) -> Out:
    """Logits (B, T, V) float32 of the decoder; encoder_decoder.py describes the batch.

    With a cache, the first call encodes. Later calls omit encoder_tokens.
    """
    check_batch(batch, cache)
    encoder_rng, decoder_rng = jax.random.split(rng) if train and rng is not None else (None, None)
    memory_where, memory = encoder_where(batch), None
    if memory_where is None:
        memory_where = cache.memory_where
    else:
        where = (memory_where, memory_where, 0, False, None, None)
        memory, _ = run(cfg, p, "encoder", batch["encoder_tokens"], encoder_rng, (None, None), *where)
    q_where, k_where, own = decoder.where(batch, cache and cache.own)
    caches = (own and own.layers, cache.memory if memory is None else None)
    where = (q_where, k_where, own and own.index, True, memory, memory_where)
    x_BTD, kv = run(cfg, p, "decoder", batch["tokens"], decoder_rng, caches, *where)
    head = Head(x_BTD, p["embed"]["table"], p.get("logits_bias"))
    if cache is not None:
        cache = cache._replace(own=own.advance(kv[0], x_BTD.shape[1]), memory=kv[1], memory_where=memory_where)
    return Out(head.logits(), cache=cache, head=head)


# The University of Helsinki's first models. All have en-de's sizes except for the vocabulary.
OPUS_MT = TransformerConfig(
    vocab_size=58_101,
    max_seq_len=512,
    activation="silu",
    logits_bias=True,
    decoder_start_token_id=58_100,
)
PRESETS = {
    "transformer-base": TransformerConfig(),
    "transformer-big": TransformerConfig(embed_dim=1024, num_heads=16, mlp_dim=4096),
    "opus-mt-en-de": OPUS_MT,
    "opus-mt-en-fr": dataclasses.replace(OPUS_MT, vocab_size=59_514, decoder_start_token_id=59_513),
    "opus-mt-en-zh": dataclasses.replace(OPUS_MT, vocab_size=65_001, decoder_start_token_id=65_000),
}
