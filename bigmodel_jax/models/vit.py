"""ViT: an image as a sequence of patches, a class token, and a pre-norm encoder.

Dosovitskiy et al., arXiv:2010.11929. DINOv2 (Oquab et al., arXiv:2304.07193) is a ViT with other
fields: LayerScale, SwiGLU in its largest size, register tokens in its second edition (Darcet et
al., arXiv:2309.16588), and heads of its own.

Shapes: B batch, H height, W width, C channels, T 1 + registers + patches, D embed, L layers, P
patch side, K classes.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, normal
from bigmodel_jax.core.ranges import Count, CountOrZero, Depth, NonNegative
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import prenorm
from bigmodel_jax.models.base import Entry, Model, ModelConfig, Out, parts_of
from bigmodel_jax.models.compute import Compute
from bigmodel_jax.nn import linear, norm
from bigmodel_jax.nn.activations import Activation


@dataclasses.dataclass(frozen=True)
class ViTConfig(ModelConfig):
    """A Vision Transformer (Dosovitskiy et al., arXiv:2010.11929); defaults: ViT-B/16 for ImageNet.

    The reference implementations are transformers' `ViTForImageClassification` and, for DINOv2,
    `Dinov2Model` and `Dinov2WithRegistersModel`.
    """

    image_shape: tuple[Count, Count, Count] = (224, 224, 3)  # height, width and channels
    num_classes: Count = 1000  # number of classes
    patch_size: Count = 16  # side of a patch, in pixels
    num_layers: Depth = 12  # number of blocks
    embed_dim: Count = 768  # width of the residual stream
    num_heads: Count = 12  # attention heads of a layer
    mlp_dim: Count = 3072  # hidden width of the feed-forward layer
    activation: Activation = "gelu"  # activation of the feed-forward layer
    norm_eps: NonNegative = 1e-12  # added to the variance in every norm
    init_std: NonNegative = 0.02  # standard deviation of the initial weights
    head: Literal["class", "class_and_mean", "pixels", "none"] = "class"
    """class: logits of the class token; class_and_mean: logits of the class token and the mean over
    patches, as in DINOv2's classifiers; pixels: each patch gives the logits of its pixels; none:
    the tokens themselves"""
    layer_scale: NonNegative = 0.0  # initial factor of each channel that a layer adds (LayerScale); 0 = no factors
    num_registers: CountOrZero = 0  # register tokens, which follow the class token and have no position
    gated_mlp: bool = False  # whether the feed-forward layer is SwiGLU
    compute: Compute = Compute()

    SIZES: ClassVar[tuple] = (*prenorm.SIZES, prenorm.Patches())

    def inputs(self):
        return {"image": self.image_shape}

    def make(self) -> Model:
        return Model(spec(self), parts_of(self, enter, block, leave))

    def validate(self, parallel) -> None:
        super().validate(parallel)
        if self.head == "pixels" and (wrong := prenorm.Patches(all_whole=True).wrong(self, "model.", parallel)):
            raise ValueError(wrong)

    @classmethod
    def tiny(cls) -> "ViTConfig":
        return cls(
            image_shape=(8, 8, 1), num_classes=10, patch_size=4, num_layers=2, embed_dim=32, num_heads=4, mlp_dim=64
        )


def spec(cfg: ViTConfig) -> params.Tree:
    """Class token, registers, positions (1 + patches, D), patches, layers, last norm and head."""
    init, D = normal(cfg.init_std), cfg.embed_dim
    more = {"gated": cfg.gated_mlp, "layer_scale": cfg.layer_scale}
    block = prenorm.block_spec(cfg, qkv=init, out=init, up=init, down=init, **more)
    # decay=False: these parameters are one vector per token, and not matrices.
    tokens = {"cls": Param((1, D), (None, "embed"), init, decay=False)}
    if cfg.num_registers:
        tokens["registers"] = Param((cfg.num_registers, D), (None, "embed"), init, decay=False)
    num = 1 + prenorm.num_patches(cfg.image_shape, cfg.patch_size)
    return tokens | {
        "positions": Param((num, D), (None, "embed"), init, decay=False),
        "patches": prenorm.patch_spec(cfg.patch_size, cfg.image_shape[2], D, init=init),
        "layers": params.stack(block, cfg.num_layers),
        "norm": norm.layer_spec(D),
        **head_spec(cfg, init),
    }


def head_spec(cfg: ViTConfig, init: params.Init) -> params.Tree:
    """Returns {"head": (D or 2 D, outputs)}; {} without a head."""
    if cfg.head == "none":
        return {}
    width = cfg.embed_dim * (2 if cfg.head == "class_and_mean" else 1)
    outputs = cfg.num_classes * (cfg.patch_size**2 if cfg.head == "pixels" else 1)
    return {"head": linear.linear_spec(width, outputs, axes=("embed", None), init=init, bias=True)}


def enter(cfg: ViTConfig, p, batch, *, rng, train: bool, cache) -> Entry:
    """Embeds batch["image"] (B, H, W, C) as (B, T, D): class token, registers, patches."""
    x_BTD = prenorm.embed_patches(p["patches"], batch["image"])
    cls = jnp.broadcast_to(p["cls"], (x_BTD.shape[0], 1, cfg.embed_dim)).astype(x_BTD.dtype)
    x_BTD = jnp.concatenate([cls, x_BTD], axis=1) + p["positions"]
    if cfg.num_registers:
        registers = jnp.broadcast_to(p["registers"], (len(cls), *p["registers"].shape)).astype(x_BTD.dtype)
        x_BTD = jnp.concatenate([x_BTD[:, :1], registers, x_BTD[:, 1:]], axis=1)
    x_BTD = constrain(x_BTD, "batch", "seq", "embed")
    return Entry(x_BTD, shared=(prenorm.places(x_BTD),))


def block(cfg: ViTConfig, p, x_BTD, _, where, *, train: bool):
    """One layer, (B, T, D) -> (B, T, D)."""
    return prenorm.block(cfg, p, x_BTD, where, causal=False), None


def leave(cfg: ViTConfig, p, entry: Entry, x_BTD, ys, batch, *, train: bool) -> Out:
    """Logits (B, K), or (B, H, W, K) of pixels.

    Without a head {"hidden": (B, T, D), "pooled": (B, D)}, "pooled" being the class token's state.
    """
    if cfg.head == "class":  # normalises one token instead of all
        cls = jax.lax.index_in_dim(x_BTD, 0, 1, keepdims=False)
        return Out(constrain(linear.linear(p["head"], norm.layer(p["norm"], cls, eps=cfg.norm_eps)), "batch", None))
    x_BTD = norm.layer(p["norm"], x_BTD, eps=cfg.norm_eps)
    cls, patches = x_BTD[:, 0], x_BTD[:, 1 + cfg.num_registers :]
    if cfg.head == "none":
        return Out({"hidden": x_BTD, "pooled": cls})
    if cfg.head == "class_and_mean":
        both = jnp.concatenate([cls, jnp.mean(patches, axis=1)], axis=-1)
        return Out(constrain(linear.linear(p["head"], both), "batch", None))
    logits = prenorm.unpatchify(linear.linear(p["head"], patches), cfg.image_shape, cfg.patch_size)
    return Out(constrain(logits, "batch", None, None, None))


TI_16 = ViTConfig(embed_dim=192, num_heads=3, mlp_dim=768)
S_16 = ViTConfig(embed_dim=384, num_heads=6, mlp_dim=1536)
L_16 = ViTConfig(num_layers=24, embed_dim=1024, num_heads=16, mlp_dim=4096)
PRESETS = {
    "vit-ti/16": TI_16,
    "vit-s/16": S_16,
    "vit-b/16": ViTConfig(),
    "vit-b/32": ViTConfig(patch_size=32),
    "vit-l/16": L_16,
    "vit-h/14": ViTConfig(patch_size=14, num_layers=32, embed_dim=1280, num_heads=16, mlp_dim=5120),
}

# The published encoders: 518 x 518 pixels, 37 x 37 patches, no head.
DINO = {"image_shape": (518, 518, 3), "patch_size": 14, "norm_eps": 1e-6, "head": "none", "layer_scale": 1.0}
_DINO_SIZES = {
    "dinov2-s/14": {"embed_dim": 384, "num_heads": 6, "mlp_dim": 1536},
    "dinov2-b/14": {},
    "dinov2-l/14": {"num_layers": 24, "embed_dim": 1024, "num_heads": 16, "mlp_dim": 4096},
    "dinov2-g/14": {"num_layers": 40, "embed_dim": 1536, "num_heads": 24, "mlp_dim": 4096, "gated_mlp": True},
}
PRESETS |= {name: ViTConfig(**DINO, **sizes) for name, sizes in _DINO_SIZES.items()}
PRESETS |= {f"{name}-registers": ViTConfig(**DINO, **sizes, num_registers=4) for name, sizes in _DINO_SIZES.items()}
