"""ViT: an image as a sequence of patches, a class token, a pre-norm encoder (Dosovitskiy et al., arXiv:2010.11929).

Shapes: B batch, H height, W width, C channels, T 1 + patches, D embed, L layers.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, normal
from bigmodel_jax.core.ranges import Count, Depth, NonNegative
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import prenorm
from bigmodel_jax.models.base import Entry, Model, ModelConfig, Out, parts_of
from bigmodel_jax.models.compute import Compute
from bigmodel_jax.nn import linear, norm
from bigmodel_jax.nn.activations import Activation


@dataclasses.dataclass(frozen=True)
class ViTConfig(ModelConfig):
    """Defaults: ViT-B/16 for ImageNet."""

    image_shape: tuple[Count, Count, Count] = (224, 224, 3)
    num_classes: Count = 1000
    patch_size: Count = 16
    num_layers: Depth = 12
    embed_dim: Count = 768
    num_heads: Count = 12
    mlp_dim: Count = 3072
    activation: Activation = "gelu"
    norm_eps: NonNegative = 1e-12
    init_std: NonNegative = 0.02
    compute: Compute = Compute()

    SIZES: ClassVar[tuple] = (*prenorm.SIZES, prenorm.Patches())

    def inputs(self):
        return {"image": self.image_shape}

    def make(self) -> Model:
        return Model(spec(self), parts_of(self, enter, block, leave))

    @classmethod
    def tiny(cls) -> "ViTConfig":
        return cls(
            image_shape=(8, 8, 1), num_classes=10, patch_size=4, num_layers=2, embed_dim=32, num_heads=4, mlp_dim=64
        )


def spec(cfg: ViTConfig) -> params.Tree:
    init, D = normal(cfg.init_std), cfg.embed_dim
    block = prenorm.block_spec(cfg, qkv=init, out=init, up=init, down=init)
    # decay=False: one vector per place, not a map.
    tokens = {"cls": Param((1, D), (None, "embed"), init, decay=False)}
    num = 1 + prenorm.num_patches(cfg.image_shape, cfg.patch_size)
    return tokens | {
        "positions": Param((num, D), (None, "embed"), init, decay=False),
        "patches": prenorm.patch_spec(cfg.patch_size, cfg.image_shape[2], D, init=init),
        "layers": params.stack(block, cfg.num_layers),
        "norm": norm.layer_spec(D),
        "head": linear.linear_spec(D, cfg.num_classes, axes=("embed", None), init=init, bias=True),
    }


def enter(cfg: ViTConfig, p, batch, *, rng, train: bool, cache) -> Entry:
    """batch: image (B, H, W, C)."""
    x_BTD = prenorm.embed_patches(p["patches"], batch["image"])
    cls = jnp.broadcast_to(p["cls"], (x_BTD.shape[0], 1, cfg.embed_dim)).astype(x_BTD.dtype)
    x_BTD = constrain(jnp.concatenate([cls, x_BTD], axis=1) + p["positions"], "batch", "seq", "embed")
    return Entry(x_BTD, shared=(prenorm.places(x_BTD),))


def block(cfg: ViTConfig, p, x_BTD, _, where, *, train: bool):
    return prenorm.block(cfg, p, x_BTD, where, causal=False), None


def leave(cfg: ViTConfig, p, entry: Entry, x_BTD, ys, batch, *, train: bool) -> Out:
    """Logits (B, num_classes): a linear map of the class token."""
    cls = jax.lax.index_in_dim(x_BTD, 0, 1, keepdims=False)
    return Out(constrain(linear.linear(p["head"], norm.layer(p["norm"], cls, eps=cfg.norm_eps)), "batch", None))


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
