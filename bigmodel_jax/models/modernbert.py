"""ModernBERT: a pre-norm encoder with rotary positions, GeGLU and windows in most of its layers.

Warner et al., arXiv:2412.13663. No dense layer but the classifier and the logits has a bias. The
first layer's attention reads the normed embeddings as they are, so it has no norm of its own.

Shapes: B batch, T tokens, D embed, H heads, h head_dim, F mlp, V vocab, L layers, C classes.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Init, Param, zeros
from bigmodel_jax.core.ranges import Count, CountOrZero, Depth, NonNegative, Positive
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import bert
from bigmodel_jax.models.base import NO_DEPTH_FORM, Entry, Model, ModelConfig, Out, parts_of
from bigmodel_jax.models.compute import Compute
from bigmodel_jax.models.decoder import ROTARY, where
from bigmodel_jax.nn import feedforward, linear, norm, position
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.head import Head as TableHead

Head = Literal["none", "masked_lm", "classification", "token_classification", "question_answering"]


@dataclasses.dataclass(frozen=True)
class ModernBertConfig(ModelConfig):
    """A ModernBERT (Warner et al., arXiv:2412.13663) with one of five heads.

    The reference implementation is transformers' `ModernBertModel` and its heads. The defaults are
    those of ModernBERT-base.
    """

    vocab_size: Count = 50_368  # tokens in the vocabulary
    num_layers: Depth = 22  # number of blocks
    embed_dim: Count = 768  # width of the residual stream
    num_heads: Count = 12  # attention heads of a layer
    mlp_dim: Count = 1152  # hidden width of the feed-forward layer
    max_seq_len: Count = 8192  # longest sequence, in tokens
    head: Head = "masked_lm"  # what the model returns: see `leave`
    num_classes: CountOrZero = 0  # classes of the heads classification and token_classification
    pooling: Literal["cls", "mean"] = "cls"  # what the head classification reads: a row's first token, or all tokens
    window: Count = 65  # tokens that a token of a local layer sees on each side, itself included
    global_every: Count = 3  # every n-th layer is global: layers 0, n, 2n, ...
    rope_theta: Positive = 160_000.0  # base of the rotary frequencies of global layers
    local_rope_theta: Positive = 10_000.0  # rope_theta of local layers
    norm_eps: NonNegative = 1e-5  # added to the variance in every norm
    init_std: NonNegative = 0.02  # standard deviation of the initial weights, before the ends are cut off
    compute: Compute = Compute()

    SIZES: ClassVar[tuple] = (*bert.SIZES, ROTARY)
    LAYERS_ALIKE: ClassVar[bool] = False
    FIRST_NORM: ClassVar[int] = 1  # the first layer with a norm before its attention

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    def inputs(self):
        return {"tokens": None}

    def no_mup(self, depth):
        return f"has a norm less than layers, {NO_DEPTH_FORM}" if depth else ""

    def make(self) -> Model:
        return Model(spec(self), parts_of(self, enter, block, leave))

    def windows(self) -> tuple[int, ...]:
        return tuple(2 * self.window - 1 if local else 0 for local in is_local(self))

    def validate(self, parallel) -> None:
        super().validate(parallel)
        bert.check_classes(self)

    @classmethod
    def tiny(cls) -> "ModernBertConfig":
        sizes = {"vocab_size": 64, "num_layers": 3, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, "max_seq_len": 32}
        return cls(**sizes, window=3, global_every=2)


def is_local(cfg: ModernBertConfig) -> np.ndarray:
    """Returns (L,) bool: which layers have the window."""
    return np.arange(cfg.num_layers) % cfg.global_every != 0


# --------------------------------------------------------------------------------------- parameters


def cut_normal(std: float) -> Init:
    """A normal distribution around 0, cut off at two standard deviations."""
    return Init(f"cut_normal({std:.4g})", jax.nn.initializers.truncated_normal(std))


def block_spec(cfg: ModernBertConfig) -> params.Tree:
    """One layer: attention (D, H, h), and a norm before the gated MLP (D, F)."""
    init, out_init = cut_normal(cfg.init_std), cut_normal(cfg.init_std * (2 * cfg.num_layers) ** -0.5)
    D, H = cfg.embed_dim, cfg.num_heads
    return {
        "attn": attention.spec(D, H, H, cfg.head_dim, init=init, out_init=out_init),
        "mlp_norm": norm.layer_spec(D, bias=False),
        "mlp": feedforward.swiglu_spec(D, cfg.mlp_dim, init=init, out_init=out_init),
    }


def head_spec(cfg: ModernBertConfig) -> params.Tree:
    """The parameters of `cfg.head`: a dense layer (D, D) with its norm, and what reads them.

    The head "masked_lm" has logits_bias (V,), as the projection is the embedding table. All other
    heads have head (D, C).
    """
    if cfg.head == "none":
        return {}
    D, axes = cfg.embed_dim, ("embed", None)
    dense = linear.linear_spec(D, D, axes=axes, init=cut_normal(cfg.init_std * (2 * cfg.num_layers) ** -0.5))
    tree = {"transform": {"dense": dense, "norm": norm.layer_spec(D, bias=False)}}
    if cfg.head == "masked_lm":
        return tree | {"logits_bias": Param((cfg.vocab_size,), ("vocab",), zeros())}
    num = 2 if cfg.head == "question_answering" else cfg.num_classes
    return tree | {"head": linear.linear_spec(D, num, axes=axes, init=cut_normal(D**-0.5), bias=True)}


def spec(cfg: ModernBertConfig) -> params.Tree:
    """The table (V, D), the stacked layers, the norms before attention (L - 1, D), and the head."""
    plain = norm.layer_spec(cfg.embed_dim, bias=False)
    norms = {"attn_norm": params.stack(plain, cfg.num_layers - 1, axis=None)}
    return {
        "embed": linear.embedding_spec(cfg.vocab_size, cfg.embed_dim, init=cut_normal(cfg.init_std)),
        "embed_norm": plain,
        **(norms if cfg.num_layers > 1 else {}),
        "layers": params.stack(block_spec(cfg), cfg.num_layers),
        "norm": plain,
        **head_spec(cfg),
    }


# -------------------------------------------------------------------------------------------- apply


def enter(cfg: ModernBertConfig, p, batch, *, rng, train: bool, cache) -> Entry:
    """Embeds a batch: tokens (B, T).

    Optional arrays, also (B, T), are positions and segment_ids. Each layer takes the norm before
    its attention, and whether it is the first one and whether it is local.
    """
    here, _, _ = where(batch, None)
    x_BTD = norm.layer(p["embed_norm"], linear.embed(p["embed"], batch["tokens"]), eps=cfg.norm_eps)
    x_BTD = constrain(x_BTD, "batch", "seq", "embed")
    # The first layer's scale is not used, and stands here so that all layers share one program.
    scale = jnp.ones((1, cfg.embed_dim), p["embed_norm"]["scale"].dtype)
    if "attn_norm" in p:
        scale = jnp.concatenate([scale, p["attn_norm"]["scale"]])
    angles = [
        position.rope_angles(here.positions, cfg.head_dim, theta=theta)
        for theta in (cfg.rope_theta, cfg.local_rope_theta)
    ]
    return Entry(x_BTD, ({"scale": scale}, np.arange(cfg.num_layers) == 0, is_local(cfg)), (here, tuple(angles)))


def block(cfg: ModernBertConfig, p, x_BTD, xs, here, angles, *, train: bool):
    """One pre-norm layer of the stack, (B, T, D) -> (B, T, D); here: the places of the tokens.

    xs: as `enter` gives them. angles: the rotary angles of global and of local layers.
    """
    attn_norm, first, local = xs
    turn = jax.tree.map(lambda far, near: jnp.where(local, near, far), *angles)
    h = jnp.where(first, x_BTD, norm.layer(attn_norm, x_BTD, eps=cfg.norm_eps))
    q, k, v = attention.qkv(p["attn"], h)
    q, k = position.rope(q, turn), position.rope(k, turn)
    options = {"causal": False, "window": cfg.window, "local": local, "implementation": cfg.compute.attention}
    h = attention.project_out(p["attn"], attention.attend(q, k, v, here, here, **options))
    x_BTD = constrain(x_BTD + h, "batch", "seq", "embed")
    h = feedforward.geglu(p["mlp"], norm.layer(p["mlp_norm"], x_BTD, eps=cfg.norm_eps), approximate=False)
    return constrain(x_BTD + h, "batch", "seq", "embed"), None


def pool(cfg: ModernBertConfig, x_BTD, segments_BT):
    """Returns (B, D): the state of each row's first token, or the mean over its tokens."""
    if cfg.pooling == "cls":
        return jax.lax.index_in_dim(x_BTD, 0, 1, keepdims=False)
    real = (segments_BT > 0)[..., None]
    # The sums are float32: bfloat16 has no odd numbers above 256.
    total = jnp.sum(jnp.where(real, x_BTD, 0), axis=1, dtype=jnp.float32)
    # A row without tokens has the mean 0 and not NaN.
    return (total / jnp.maximum(jnp.sum(real, axis=1, dtype=jnp.float32), 1)).astype(x_BTD.dtype)


def leave(cfg: ModernBertConfig, p, entry: Entry, x_BTD, ys, batch, *, train: bool) -> Out:
    """The output of the head.

    none: {"hidden" (B, T, D)}. masked_lm: logits (B, T, V). classification: logits (B, C).
    token_classification: logits (B, T, C). question_answering: (B, T, 2), the logits of an answer's
    start and end. A row holds one document for the head classification.
    """
    x_BTD = norm.layer(p["norm"], x_BTD, eps=cfg.norm_eps)
    if cfg.head == "none":
        return Out({"hidden": x_BTD})
    features = pool(cfg, x_BTD, entry.shared[0].segments) if cfg.head == "classification" else x_BTD
    h = norm.layer(
        p["transform"]["norm"], bert.gelu(linear.linear(p["transform"]["dense"], features)), eps=cfg.norm_eps
    )
    if cfg.head == "masked_lm":
        head = TableHead(h, p["embed"]["table"], p["logits_bias"])
        return Out(head.logits(), head=head)
    return Out(linear.linear(p["head"], h))


PRESETS = {
    "modernbert-base": ModernBertConfig(),
    "modernbert-large": ModernBertConfig(num_layers=28, embed_dim=1024, num_heads=16, mlp_dim=2624),
}
