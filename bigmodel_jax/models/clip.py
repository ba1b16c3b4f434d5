"""CLIP: an image tower and a text tower with a shared embedding space (arXiv:2103.00020).

Shapes: B batch, H height, W width, C channels, T tokens or 1 + patches, D embed, F mlp, P patch
side, V vocab, E shared embedding, L layers.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Init, Param, constant, normal
from bigmodel_jax.core.ranges import Count, CountOrZero, Depth, NonNegative
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import prenorm
from bigmodel_jax.models.base import Model, ModelConfig, Out
from bigmodel_jax.models.compute import MOVED, Compute
from bigmodel_jax.models.sizes import Cut
from bigmodel_jax.nn import linear, norm
from bigmodel_jax.nn.activations import Activation


@dataclasses.dataclass(frozen=True)
class Tower:
    """The sizes of one of the two encoders, a pre-norm Transformer (prenorm.py)."""

    num_layers: Depth = 12  # number of blocks
    embed_dim: Count = 768  # width of the residual stream
    num_heads: Count = 12  # attention heads of a layer
    mlp_dim: Count = 3072  # hidden width of the feed-forward layer
    activation: Activation = "quick_gelu"  # activation of the feed-forward layer
    norm_eps: NonNegative = 1e-5  # added to the variance in every norm
    compute: Compute = Compute()

    RENAMED: ClassVar[dict[str, str]] = MOVED
    SIZES: ClassVar[tuple] = prenorm.SIZES


@dataclasses.dataclass(frozen=True)
class VisionTower(Tower):
    """The image tower: a ViT over patches of `patch_size` pixels a side, with a class token."""

    image_shape: tuple[Count, Count, Count] = (224, 224, 3)  # height, width and channels
    patch_size: Count = 32  # side of a patch, in pixels

    SIZES: ClassVar[tuple] = (*Tower.SIZES, prenorm.Patches())


@dataclasses.dataclass(frozen=True)
class TextTower(Tower):
    """The text tower: a pre-norm Transformer over tokens with learned positions."""

    embed_dim: Count = 512  # width of the residual stream
    num_heads: Count = 8  # attention heads of a layer
    mlp_dim: Count = 2048  # hidden width of the feed-forward layer
    vocab_size: Count = 49_408  # tokens in the vocabulary
    max_seq_len: Count = 77  # longest sequence, in tokens

    SIZES: ClassVar[tuple] = (*Tower.SIZES, Cut("vocab_size", "vocab"))


@dataclasses.dataclass(frozen=True)
class CLIPConfig(ModelConfig):
    """CLIP: two encoders whose embeddings of an image and its text are close.

    The paper is Radford et al., arXiv:2103.00020. The reference implementation is transformers'
    `CLIPModel`. The defaults are those of ViT-B/32.
    """

    vision: VisionTower = VisionTower()
    text: TextTower = TextTower()
    projection_dim: Count = 512  # dimensions of the shared embedding space
    eos_token_id: CountOrZero = 49_407
    """the end-of-text token, whose state stands for the text; 2, as in older files, selects the
    highest token id instead"""
    logit_scale_init: float = 2.6592  # initial log of the logits' scale: ln(1 / 0.07)

    def inputs(self):
        return {"image": self.vision.image_shape, "tokens": None}

    def make(self) -> Model:
        return Model(spec(self), functools.partial(apply, self))

    @classmethod
    def tiny(cls) -> "CLIPConfig":
        sizes = {"num_layers": 2, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64}
        return cls(
            vision=VisionTower(image_shape=(8, 8, 1), patch_size=4, **sizes),
            text=TextTower(vocab_size=64, max_seq_len=16, **sizes),
            projection_dim=64,
            eos_token_id=63,
        )


def layers_spec(tower: Tower) -> params.Tree:
    """The tower's stacked layers, initialised as in CLIPPreTrainedModel._init_weights.

    Matrices that add to the residual start smaller in deeper towers, except attention's output.
    """
    base, deep = tower.embed_dim**-0.5, (2 * tower.num_layers) ** -0.5
    inits = {"qkv": base * deep, "out": base, "up": (2 * tower.embed_dim) ** -0.5, "down": base * deep}
    block = prenorm.block_spec(tower, **{name: normal(std) for name, std in inits.items()})
    return params.stack(block, tower.num_layers)


def vision_spec(tower: VisionTower) -> params.Tree:
    """patches (P, P, C, D), class token (D,), positions (1 + patches, D), layers and norms."""
    D, num = tower.embed_dim, 1 + prenorm.num_patches(tower.image_shape, tower.patch_size)
    return {
        "patches": prenorm.patch_spec(tower.patch_size, tower.image_shape[2], D, init=normal(0.02), bias=False),
        "cls": Param((D,), ("embed",), normal(D**-0.5)),
        "positions": Param((num, D), (None, "embed"), normal(0.02), decay=False),
        "pre_norm": norm.layer_spec(D),
        "layers": layers_spec(tower),
        "norm": norm.layer_spec(D),
    }


def text_spec(tower: TextTower, layers: params.Tree | None = None, init: Init = normal(0.02)) -> params.Tree:
    """Table (V, D), positions (max_seq_len, D), the layers (None = CLIP's), and the last norm."""
    return {
        "embed": linear.embedding_spec(tower.vocab_size, tower.embed_dim, init=init),
        "positions": Param((tower.max_seq_len, tower.embed_dim), (None, "embed"), init, decay=False),
        "layers": layers or layers_spec(tower),
        "norm": norm.layer_spec(tower.embed_dim),
    }


def spec(cfg: CLIPConfig) -> params.Tree:
    """The towers, each with its projection "head" (D, E), and the scalar logit_scale."""

    def projection(dim: int) -> dict:
        return linear.linear_spec(dim, cfg.projection_dim, axes=("embed", None), init=normal(dim**-0.5))

    return {
        "vision": vision_spec(cfg.vision) | {"head": projection(cfg.vision.embed_dim)},
        "text": text_spec(cfg.text) | {"head": projection(cfg.text.embed_dim)},
        "logit_scale": Param((), (), constant(cfg.logit_scale_init)),
    }


def image_states(tower: VisionTower, p, image_BHWC) -> jax.Array:
    """Returns (B, 1 + patches, D): the layers' output before the last norm, class token first."""
    x_BTD = prenorm.embed_patches(p["patches"], image_BHWC)
    cls = jnp.broadcast_to(p["cls"], (x_BTD.shape[0], 1, tower.embed_dim)).astype(x_BTD.dtype)
    x_BTD = jnp.concatenate([cls, x_BTD], axis=1) + p["positions"]
    x_BTD = constrain(norm.layer(p["pre_norm"], x_BTD, eps=tower.norm_eps), "batch", "seq", "embed")
    return prenorm.encode(tower, p["layers"], x_BTD)


def encode_image(cfg: CLIPConfig, p, image_BHWC) -> jax.Array:
    """Returns (B, E): the image's embedding, not normalised."""
    x_BTD = image_states(cfg.vision, p, image_BHWC)
    return linear.linear(p["head"], norm.layer(p["norm"], x_BTD[:, 0], eps=cfg.vision.norm_eps))


def text_states(tower: TextTower, p, batch, *, causal: bool) -> jax.Array:
    """Returns (B, T, D): the tower's output after the last norm.

    batch: tokens (B, T) and segment_ids (B, T), 0 being padding. Raises ValueError if the texts are
    longer than max_seq_len.
    """
    tokens = batch["tokens"]
    if tokens.shape[1] > tower.max_seq_len:
        raise ValueError(f"model.text.max_seq_len = {tower.max_seq_len}, but texts have {tokens.shape[1]} tokens")
    x_BTD = linear.embed(p["embed"], tokens) + p["positions"][: tokens.shape[1]]
    x_BTD = constrain(x_BTD, "batch", "seq", "embed")
    x_BTD = prenorm.encode(tower, p["layers"], x_BTD, segments=batch.get("segment_ids"), causal=causal)
    return norm.layer(p["norm"], x_BTD, eps=tower.norm_eps)


def encode_text(cfg: CLIPConfig, p, batch) -> jax.Array:
    """Returns (B, E): the text's embedding, not normalised.

    It is made of the state of each row's first end-of-text token.
    """
    x_BTD, tokens = text_states(cfg.text, p, batch, causal=True), batch["tokens"]
    last = jnp.argmax(tokens if cfg.eos_token_id == 2 else tokens == cfg.eos_token_id, axis=1)
    return linear.linear(p["head"], jnp.take_along_axis(x_BTD, last[:, None, None], axis=1)[:, 0])


def normalised(x_BE: jax.Array) -> jax.Array:
    """x (B, E) scaled to length 1, in float32, because cosines are compared to 1 part in 10,000."""
    x_BE = x_BE.astype(jnp.float32)
    return x_BE * jax.lax.rsqrt(jnp.sum(jnp.square(x_BE), axis=-1, keepdims=True))


def apply(cfg: CLIPConfig, p, batch, *, rng=None, train=False, cache=None) -> Out:
    """Returns (B, 2, E) float32: the embeddings of image and text, each of length 1.

    batch: image (B, H, W, C) and tokens (B, T). `Contrastive` compares the embeddings under the
    parameter "logit_scale".
    """
    image, text = encode_image(cfg, p["vision"], batch["image"]), encode_text(cfg, p["text"], batch)
    return Out(jnp.stack([normalised(image), normalised(text)], axis=1))


PRESETS = {
    "clip-vit-b/32": CLIPConfig(),
    "clip-vit-b/16": CLIPConfig(vision=VisionTower(patch_size=16)),
    "clip-vit-l/14": CLIPConfig(
        vision=VisionTower(num_layers=24, embed_dim=1024, num_heads=16, mlp_dim=4096, patch_size=14),
        text=TextTower(embed_dim=768, num_heads=12, mlp_dim=3072),
        projection_dim=768,
    ),
}
