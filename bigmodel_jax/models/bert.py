"""BERT: a post-norm bidirectional encoder with learned positions and token types.

Devlin et al., arXiv:1810.04805. `head` selects the output. RoBERTa (roberta.py), DistilBERT
(distilbert.py), ELECTRA (electra.py) and DeBERTa (deberta.py) reuse parts of this file.

Shapes: B batch, T tokens, D embed, H heads, h head_dim, F mlp, V vocab, L layers, C classes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, normal, zeros
from bigmodel_jax.core.ranges import Count, CountOrZero, Depth, NonNegative, ShareBelowOne
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import prenorm
from bigmodel_jax.models.base import POST_NORM, Entry, Model, ModelConfig, Out, parts_of
from bigmodel_jax.models.compute import Compute
from bigmodel_jax.models.decoder import where
from bigmodel_jax.models.sizes import Cut
from bigmodel_jax.nn import feedforward, linear, norm
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.dropout import dropout
from bigmodel_jax.nn.head import Head as TableHead

Head = Literal["none", "masked_lm", "pretraining", "classification", "token_classification", "question_answering"]
gelu = functools.partial(jax.nn.gelu, approximate=False)


SIZES = (*prenorm.SIZES, Cut("vocab_size", "vocab"))


@dataclasses.dataclass(frozen=True)
class BertConfig(ModelConfig):
    """A BERT encoder (Devlin et al., arXiv:1810.04805) with one of six heads.

    The reference implementation is transformers' `BertModel` and its heads. The defaults are those
    of bert-base-uncased, which was trained with dropout 0.1.
    """

    vocab_size: Count = 30_522  # tokens in the vocabulary
    num_layers: Depth = 12  # number of blocks
    embed_dim: Count = 768  # width of the residual stream
    num_heads: Count = 12  # attention heads of a layer
    mlp_dim: Count = 3072  # hidden width of the feed-forward layer
    max_seq_len: Count = 512  # longest sequence, in tokens
    num_token_types: Count = 2  # rows of the token type table
    head: Head = "masked_lm"  # what the model returns: see `leave`
    num_classes: CountOrZero = 0  # classes of the heads classification and token_classification
    norm_eps: NonNegative = 1e-12  # added to the variance in every norm
    init_std: NonNegative = 0.02  # standard deviation of the initial weights
    dropout: ShareBelowOne = 0.0  # dropout rate in training
    compute: Compute = Compute()

    SIZES: ClassVar[tuple] = SIZES
    POOLED: ClassVar[tuple[str, ...]] = ("none", "pretraining", "classification")  # heads that have a pooler
    POOLER: ClassVar[Callable] = jnp.tanh  # the pooler's activation

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def table_dim(self) -> int:
        """The width of the embedding tables."""
        return self.embed_dim

    @property
    def first_position(self) -> int:
        """The row of the position table that a document's first token reads."""
        return 0

    def inputs(self):
        return {"tokens": None}

    def no_mup(self, depth):
        return POST_NORM if depth else ""

    def make(self) -> Model:
        return Model(spec(self), parts_of(self, enter, block, leave))

    def validate(self, parallel) -> None:
        super().validate(parallel)
        check_classes(self)

    @classmethod
    def tiny(cls) -> "BertConfig":
        return cls(vocab_size=64, num_layers=2, embed_dim=32, num_heads=4, mlp_dim=64, max_seq_len=32)


def check_classes(cfg) -> None:
    """Raises ValueError, one line, for a classifier without classes."""
    if cfg.num_classes < 1 and cfg.head in ("classification", "token_classification"):
        raise ValueError(f"model.num_classes = {cfg.num_classes}; model.head = {cfg.head!r} needs 1 or more")


# --------------------------------------------------------------------------------------- parameters


def block_spec(cfg) -> params.Tree:
    """One layer: attention (D, H, h) and MLP (D, F), with biases and a LayerNorm after each."""
    init, D, H = normal(cfg.init_std), cfg.embed_dim, cfg.num_heads
    return {
        "attn": attention.spec(D, H, H, cfg.head_dim, init=init, out_init=init, bias=True),
        "attn_norm": norm.layer_spec(D),
        "mlp": feedforward.mlp_spec(D, cfg.mlp_dim, init=init, out_init=init),
        "mlp_norm": norm.layer_spec(D),
    }


def head_spec(cfg: BertConfig) -> params.Tree:
    """The parameters of `cfg.head`: pooler (D, D), mlm, next_sentence (D, 2) or head (D, C)."""
    dense = functools.partial(linear.linear_spec, cfg.embed_dim, axes=("embed", None), init=normal(cfg.init_std))
    tree = {}
    if cfg.head in cfg.POOLED:
        tree["pooler"] = dense(cfg.embed_dim, bias=True)
    if cfg.head in ("masked_lm", "pretraining"):
        tree["mlm"] = masked_lm_spec(cfg, cfg.table_dim)
    if cfg.head == "pretraining":
        tree["next_sentence"] = dense(2, bias=True)
    if cfg.head in ("classification", "token_classification", "question_answering"):
        tree["head"] = dense(2 if cfg.head == "question_answering" else cfg.num_classes, bias=True)
    return tree


def masked_lm_spec(cfg, width: int) -> params.Tree:
    """The masked LM head: a dense layer (D, width), a norm and the logits' bias (V,).

    width: the embedding table's. The output projection is that table, transposed.
    """
    return {
        "dense": linear.linear_spec(cfg.embed_dim, width, axes=("embed", None), init=normal(cfg.init_std), bias=True),
        "norm": norm.layer_spec(width),
        "bias": Param((cfg.vocab_size,), ("vocab",), zeros()),
    }


def spec(cfg: BertConfig) -> params.Tree:
    """The tables of tokens, positions and token types, the stacked layers, and the head.

    Tables of another width than the layers' have a dense layer between them.
    """
    init, D, E = normal(cfg.init_std), cfg.embed_dim, cfg.table_dim
    types = {"token_types": linear.embedding_spec(cfg.num_token_types, E, init=init, axis=None)}
    project = {"embed_project": linear.linear_spec(E, D, axes=(None, "embed"), init=init, bias=True)}
    return {
        "embed": linear.embedding_spec(cfg.vocab_size, E, init=init),
        "positions": linear.embedding_spec(cfg.first_position + cfg.max_seq_len, E, init=init, axis=None),
        **(types if cfg.num_token_types else {}),
        "embed_norm": norm.layer_spec(E),
        **(project if E != D else {}),
        "layers": params.stack(block_spec(cfg), cfg.num_layers),
        **head_spec(cfg),
    }


# -------------------------------------------------------------------------------------------- apply


def split(cfg, rng) -> tuple:
    """Dropout keys (embeddings, head, layers (L,)); (None, None, None) if nothing is dropped."""
    if rng is None or cfg.dropout == 0.0:
        return None, None, None
    keys = jax.random.split(rng, cfg.num_layers + 2)
    return keys[0], keys[1], keys[2:]


def layer(cfg, p, x_BTD, rng, attend):
    """One post-norm layer, (B, T, D) -> (B, T, D): a norm follows each residual sum.

    attend(p, x): the attention with its output projection, (B, T, D).
    """
    attn_rng, mlp_rng = (None, None) if rng is None else jax.random.split(rng)
    h = dropout(cfg.dropout, attend(p["attn"], x_BTD), attn_rng)
    x_BTD = constrain(norm.layer(p["attn_norm"], x_BTD + h, eps=cfg.norm_eps), "batch", "seq", "embed")
    h = dropout(cfg.dropout, feedforward.mlp(p["mlp"], x_BTD, gelu), mlp_rng)
    return constrain(norm.layer(p["mlp_norm"], x_BTD + h, eps=cfg.norm_eps), "batch", "seq", "embed"), None


def block(cfg: BertConfig, p, x_BTD, rng, here, *, train: bool):
    """One layer of the stack, (B, T, D) -> (B, T, D); here: the places of the tokens."""

    def attend(p, x_BTD):
        h = attention.attend(*attention.qkv(p, x_BTD), here, here, causal=False, implementation=cfg.compute.attention)
        return attention.project_out(p, h)

    return layer(cfg, p, x_BTD, rng, attend)


def enter(cfg: BertConfig, p, batch, *, rng, train: bool, cache) -> Entry:
    """Embeds a batch: tokens (B, T).

    Optional arrays, also (B, T), are token_types, positions and segment_ids.
    """
    embed_rng, head_rng, layer_rngs = split(cfg, rng)
    here, _, _ = where(batch, None)
    types = batch.get("token_types")
    x_BTD = linear.embed(p["embed"], batch["tokens"])
    if "token_types" in p:
        x_BTD += linear.embed(p["token_types"], jnp.zeros_like(batch["tokens"]) if types is None else types)
    x_BTD += linear.embed(p["positions"], here.positions + cfg.first_position)
    x_BTD = norm.layer(p["embed_norm"], x_BTD, eps=cfg.norm_eps)
    x_BTD = dropout(cfg.dropout, x_BTD, embed_rng)
    x_BTD = linear.linear(p["embed_project"], x_BTD) if "embed_project" in p else x_BTD
    x_BTD = constrain(x_BTD, "batch", "seq", "embed")
    return Entry(x_BTD, layer_rngs, (here,), kept=head_rng)


def pool(cfg: BertConfig, p, x_BTD):
    """Returns (B, D): a dense layer and `POOLER` over the state of each row's first token."""
    return type(cfg).POOLER(linear.linear(p["pooler"], jax.lax.index_in_dim(x_BTD, 0, 1, keepdims=False)))


def masked_lm(cfg, p, x_BTD) -> TableHead:
    """The inputs of the logits over the vocabulary, made of the last states (B, T, D)."""
    h = norm.layer(p["mlm"]["norm"], gelu(linear.linear(p["mlm"]["dense"], x_BTD)), eps=cfg.norm_eps)
    return TableHead(h, p["embed"]["table"], p["mlm"]["bias"])


def leave(cfg: BertConfig, p, entry: Entry, x_BTD, ys, batch, *, train: bool) -> Out:
    """The output of the head.

    none: {"hidden" (B, T, D)}, with "pooled" (B, D) if the model has a pooler.
    masked_lm: logits (B, T, V).
    pretraining: {"logits" (B, T, V), "next_sentence" (B, 2)}.
    classification: logits (B, C). token_classification: logits (B, T, C).
    question_answering: (B, T, 2), the logits of an answer's start and end. The pooler reads a row's
    first token, so a row holds one document for the heads that use it.
    """
    if cfg.head == "none":
        return Out({"hidden": x_BTD} | ({"pooled": pool(cfg, p, x_BTD)} if "pooler" in p else {}))
    if cfg.head == "masked_lm":
        head = masked_lm(cfg, p, x_BTD)
        return Out(head.logits(), head=head)
    if cfg.head == "pretraining":
        next_sentence = linear.linear(p["next_sentence"], pool(cfg, p, x_BTD))
        head = masked_lm(cfg, p, x_BTD)
        return Out({"logits": head.logits(), "next_sentence": next_sentence}, head=head)
    features = pool(cfg, p, x_BTD) if cfg.head == "classification" else x_BTD
    return Out(linear.linear(p["head"], dropout(cfg.dropout, features, entry.kept)))


LARGE = BertConfig(num_layers=24, embed_dim=1024, num_heads=16, mlp_dim=4096)
PRESETS = {
    "bert-base-uncased": BertConfig(),
    "bert-base-cased": BertConfig(vocab_size=28_996),
    "bert-large-uncased": LARGE,
    "bert-large-cased": dataclasses.replace(LARGE, vocab_size=28_996),
    "minilm-l6": BertConfig(num_layers=6, embed_dim=384, mlp_dim=1536, head="none"),
}
