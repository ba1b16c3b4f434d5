"""GPT-2: a decoder with learned positions, pre-LayerNorm, biases and GELU (Radford et al., 2019).

Shapes: B batch, T tokens, S cache length, D embed, H heads, h head_dim, V vocab, L layers.
"""

import dataclasses
from typing import ClassVar

import jax

from bigmodel_jax.core import params
from bigmodel_jax.core.params import normal
from bigmodel_jax.core.ranges import Count, Depth, NonNegative, ShareBelowOne
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import decoder
from bigmodel_jax.models.base import Model, ModelConfig
from bigmodel_jax.models.compute import Compute
from bigmodel_jax.models.decoder import SIZES, table_spec, update_cache
from bigmodel_jax.models.sizes import Divides
from bigmodel_jax.nn import feedforward, linear, norm
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.dropout import dropout
from bigmodel_jax.nn.head import Head


@dataclasses.dataclass(frozen=True)
class GPT2Config(ModelConfig):
    """GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019).

    The reference implementation is transformers' `GPT2LMHeadModel`. The defaults are those of the
    124M model. The hidden width of the MLP is 4 embed_dim.
    """

    vocab_size: Count = 50_257  # tokens in the vocabulary
    num_layers: Depth = 12  # number of blocks
    embed_dim: Count = 768  # width of the residual stream
    num_heads: Count = 12  # attention heads of a layer
    max_seq_len: Count = 1024  # longest sequence, in tokens
    norm_eps: NonNegative = 1e-5  # added to the variance in every norm
    init_std: NonNegative = 0.02  # standard deviation of the initial weights
    dropout: ShareBelowOne = 0.0  # dropout rate in training
    compute: Compute = Compute()
    pad_vocab: Count = 1  # the tables' rows are padded to a multiple of this; padding rows are never tokens

    SIZES: ClassVar[tuple] = (Divides("num_heads", "embed_dim"), *SIZES)

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def mlp_dim(self) -> int:
        return 4 * self.embed_dim

    def inputs(self):
        return {"tokens": None}

    def make(self) -> Model:
        return decoder.model(self, spec(self), embed=embed, block=block, head=head)

    @classmethod
    def tiny(cls) -> "GPT2Config":
        return cls(vocab_size=64, num_layers=2, embed_dim=32, num_heads=4, max_seq_len=32)


def block_spec(cfg: GPT2Config) -> params.Tree:
    """One layer: LayerNorm, attention (D, H, h) with biases, LayerNorm, MLP (D, 4 D).

    The matrices that add to the residual start smaller by sqrt(2 num_layers).
    """
    init, out_init = normal(cfg.init_std), normal(cfg.init_std * (2 * cfg.num_layers) ** -0.5)
    D, H, h = cfg.embed_dim, cfg.num_heads, cfg.head_dim
    return {
        "attn_norm": norm.layer_spec(D),
        "attn": attention.spec(D, H, H, h, init=init, out_init=out_init, bias=True),
        "mlp_norm": norm.layer_spec(D),
        "mlp": feedforward.mlp_spec(D, cfg.mlp_dim, init=init, out_init=out_init),
    }


def spec(cfg: GPT2Config) -> params.Tree:
    """Tables of tokens (rows, D) and positions (max_seq_len, D), stacked layers, last norm."""
    init = normal(cfg.init_std)
    return {
        "embed": table_spec(cfg, init),
        "positions": linear.embedding_spec(cfg.max_seq_len, cfg.embed_dim, init=normal(cfg.init_std / 2), axis=None),
        "layers": params.stack(block_spec(cfg), cfg.num_layers),
        "norm": norm.layer_spec(cfg.embed_dim),
    }


def block(cfg: GPT2Config, p, x_BTD, xs, q_where, k_where, index, *, train):
    """Returns (x (B, T, D), (the layer's cache, None)).

    xs: the layer's cache and its dropout key.
    """
    cache, rng = xs
    attn_rng, mlp_rng = (None, None) if rng is None else jax.random.split(rng)
    h = norm.layer(p["attn_norm"], x_BTD, eps=cfg.norm_eps)
    q, k, v = attention.qkv(p["attn"], h)
    k, v = update_cache(cache, k, v, index)
    h = attention.attend(q, k, v, q_where, k_where, implementation=cfg.compute.attention)
    h = dropout(cfg.dropout, attention.project_out(p["attn"], h), attn_rng)
    x_BTD = constrain(x_BTD + h, "batch", "seq", "embed")
    h = feedforward.gelu_mlp(p["mlp"], norm.layer(p["mlp_norm"], x_BTD, eps=cfg.norm_eps))
    x_BTD = constrain(x_BTD + dropout(cfg.dropout, h, mlp_rng), "batch", "seq", "embed")
    return x_BTD, (None if cache is None else {"k": k, "v": v}, None)


def embed(cfg: GPT2Config, p, tokens, positions, rng):
    """Returns (embeddings (B, T, D), dropout keys of the layers (L,), ()).

    tokens and positions: (B, T).
    """
    rngs = None if rng is None else jax.random.split(rng, cfg.num_layers + 1)
    x_BTD = linear.embed(p["embed"], tokens) + linear.embed(p["positions"], positions)
    return dropout(cfg.dropout, x_BTD, None if rngs is None else rngs[0]), None if rngs is None else rngs[1:], ()


def head(cfg: GPT2Config, p, x_BTD) -> Head:
    """The inputs of the logits: the normed states and the embedding table."""
    return Head(norm.layer(p["norm"], x_BTD, eps=cfg.norm_eps), p["embed"]["table"], vocab=cfg.vocab_size)


PRESETS = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(num_layers=24, embed_dim=1024, num_heads=16),
    "gpt2-large": GPT2Config(num_layers=36, embed_dim=1280, num_heads=20),
    "gpt2-xl": GPT2Config(num_layers=48, embed_dim=1600, num_heads=25),
}
