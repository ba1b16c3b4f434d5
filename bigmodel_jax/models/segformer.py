"""SegFormer: four stages of Transformer layers at falling resolution, and a head of linear maps (Xie et al., arXiv:2105.15203).

A stage cuts its input into overlapping patches by a strided convolution. Keys and values are taken from fewer places than
queries ("sequence reduction"), and a depthwise convolution inside the feed-forward layer stands for positions. The head
projects every stage to one width, brings them to the first stage's resolution, and adds them up: logits of each pixel's
class, at a quarter of the image's height and width.

Shapes: B batch, H height, W width, C channels, T = H W queries, S keys, D width of a stage, F mlp, E width of the head,
K classes.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params, storage
from bigmodel_jax.core.params import Init, Param, normal, ones, zeros
from bigmodel_jax.core.ranges import Blocks, Count, NonNegative, ShareBelowOne
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import prenorm
from bigmodel_jax.models.base import Model, ModelConfig, Out
from bigmodel_jax.models.compute import Compute
from bigmodel_jax.models.efficientnet import depthwise
from bigmodel_jax.models.encoder_decoder import attend_memory
from bigmodel_jax.models.flax_module import batch_norm
from bigmodel_jax.models.sizes import Cut, SameLength
from bigmodel_jax.nn import dropout, linear, norm, stack
from bigmodel_jax.nn.activations import ACTIVATIONS, Activation
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.lora import Adapted

EPS = 1e-5  # of every norm: transformers' layers keep torch's default, whatever config.json says
MOMENTUM = 0.9  # of the head's batch norm; torch calls it 0.1
LAYOUT = ("NHWC", "HWIO", "NHWC")


@dataclasses.dataclass(frozen=True)
class SegformerConfig(ModelConfig):
    """Defaults: SegFormer-B0 for ADE20K. Each of the tuples has one entry per stage."""

    image_shape: tuple[Count, Count, Count] = (512, 512, 3)
    num_classes: Count = 150
    depths: tuple[Blocks, ...] = (2, 2, 2, 2)
    channels: tuple[Count, ...] = (32, 64, 160, 256)
    num_heads: tuple[Count, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[Count, ...] = (4, 4, 4, 4)  # width inside the feed-forward layer per channel
    reductions: tuple[Count, ...] = (8, 4, 2, 1)  # places a side of which one key is made
    patch_sizes: tuple[Count, ...] = (7, 3, 3, 3)
    strides: tuple[Count, ...] = (4, 2, 2, 2)
    decoder_dim: Count = 256
    dropout: ShareBelowOne = 0.1  # before the last map of the head
    activation: Activation = "gelu"
    init_std: NonNegative = 0.02
    compute: Compute = Compute()

    SIZES: ClassVar[tuple] = (
        *(SameLength(n, "depths") for n in ("channels", "num_heads", "mlp_ratios", "reductions")),
        *(SameLength(n, "depths") for n in ("patch_sizes", "strides")),
        *(Cut(n, axis) for n, axis in (("num_heads", "heads"), ("channels", "mlp"), ("decoder_dim", "mlp"))),
    )

    def inputs(self):
        return {"image": self.image_shape}

    def make(self) -> Model:
        def apply(p, batch, *, rng=None, train=False, cache=None) -> Out:
            states = encode(self, p, batch["image"])
            return decode(self, p["decoder"], states, rng=rng if train else None, train=train)

        return Model(spec(self), apply)

    def validate(self, parallel) -> None:
        super().validate(parallel)
        for stage, (heads, dim) in enumerate(zip(self.num_heads, self.channels, strict=True)):
            if dim % heads:
                raise ValueError(
                    f"model.num_heads = {self.num_heads}: {heads} does not divide the {dim} channels of stage {stage}"
                )
        sides = self.image_shape[:2]
        for stride, reduction in zip(self.strides, self.reductions, strict=True):
            sides = tuple(-(-side // stride) for side in sides)
            if min(sides) < reduction:
                raise ValueError(
                    f"model.image_shape = {self.image_shape}: a stage sees {sides[0]} x {sides[1]} places, of which "
                    f"model.reductions = {self.reductions} makes no key; it must be larger, or the reductions smaller"
                )

    @classmethod
    def tiny(cls) -> "SegformerConfig":
        return cls(
            image_shape=(32, 32, 1),
            num_classes=11,
            depths=(1, 2),
            channels=(16, 32),
            num_heads=(2, 4),
            mlp_ratios=(2, 2),
            reductions=(2, 1),
            patch_sizes=(7, 3),
            strides=(4, 2),
            decoder_dim=32,
            dropout=0.0,
        )


# ---------------------------------------------------------------- parameters


def conv_spec(size: int, channels: int, dim: int, init: Init) -> params.Tree:
    return prenorm.patch_spec(size, channels, dim, init=init)


def layer_spec(cfg: SegformerConfig, stage: int) -> params.Tree:
    init, D, H = normal(cfg.init_std), cfg.channels[stage], cfg.num_heads[stage]
    F, size = D * cfg.mlp_ratios[stage], cfg.reductions[stage]
    reduction = {"conv": conv_spec(size, D, D, init), "norm": norm.layer_spec(D)}
    return {
        "attn_norm": norm.layer_spec(D),
        "attn": attention.spec(D, H, H, D // H, init=init, out_init=init, bias=True),
        **({"reduction": reduction} if size > 1 else {}),
        "mlp_norm": norm.layer_spec(D),
        "mlp": {
            "up": linear.linear_spec(D, F, init=init, bias=True),
            "conv": {
                "kernel": Param((3, 3, 1, F), (None, None, None, "mlp"), init),
                "bias": Param((F,), ("mlp",), zeros()),
            },
            "down": linear.linear_spec(F, D, axes=("mlp", "embed"), init=init, bias=True),
        },
    }


def spec(cfg: SegformerConfig) -> params.Tree:
    init, E = normal(cfg.init_std), cfg.decoder_dim
    tree, channels = {}, cfg.image_shape[2]
    for n, dim in enumerate(cfg.channels):
        tree[f"stage{n}"] = {
            "patches": conv_spec(cfg.patch_sizes[n], channels, dim, init),
            "patch_norm": norm.layer_spec(dim),
            "layers": params.stack(layer_spec(cfg, n), cfg.depths[n]),
            "norm": norm.layer_spec(dim),
        }
        channels = dim
    statistics = {
        "mean": Param((E,), (None,), zeros(), trainable=False),
        "var": Param((E,), (None,), ones(), trainable=False),
    }
    tree["decoder"] = {
        **{
            f"project{n}": linear.linear_spec(dim, E, axes=("embed", "mlp"), init=init, bias=True)
            for n, dim in enumerate(cfg.channels)
        },
        # One matrix per stage, the last stage's first: the order in which published files have them.
        "fuse": Param((len(cfg.channels), E, E), (None, "mlp", "embed"), init),
        "norm": {"scale": Param((E,), (None,), ones()), "bias": Param((E,), (None,), zeros())} | statistics,
        "head": linear.linear_spec(E, cfg.num_classes, axes=("embed", None), init=init, bias=True),
    }
    return tree


# ---------------------------------------------------------------- encoder


def array(w, dtype) -> jax.Array:
    """A weight that no product reads, with its adapters in it."""
    return w.dense(dtype) if isinstance(w, Adapted) else storage.dense(w, dtype)


def conv(p: dict, x_BHWC: jax.Array, stride: int) -> jax.Array:
    """A convolution that is padded by half its width on every side."""
    kernel = array(p["kernel"], x_BHWC.dtype)
    pad = kernel.shape[0] // 2
    y = jax.lax.conv_general_dilated(x_BHWC, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=LAYOUT)
    return y + p["bias"]


def encode(cfg: SegformerConfig, p, image_BHWC: jax.Array) -> list[jax.Array]:
    """What leaves each stage, (B, H, W, D) of its own height, width and channels."""
    x, states = image_BHWC.astype(p["stage0"]["norm"]["scale"].dtype), []
    for n in range(len(cfg.channels)):
        stage = p[f"stage{n}"]
        x = constrain(conv(stage["patches"], x, cfg.strides[n]), "batch", None, None, "embed")
        B, H, W, D = x.shape
        x = norm.layer(stage["patch_norm"], x.reshape(B, H * W, D), eps=EPS)
        x = run_layers(cfg, n, stage["layers"], x, (H, W))
        x = norm.layer(stage["norm"], x, eps=EPS).reshape(B, H, W, D)
        states.append(x)
    return states


def run_layers(cfg: SegformerConfig, stage: int, layers, x_BTD: jax.Array, sides: tuple[int, int]) -> jax.Array:
    size = cfg.reductions[stage]
    B, keys = x_BTD.shape[0], (sides[0] // size) * (sides[1] // size)

    def body(layer, x, _, queries, reduced):
        return block(cfg, layer, x, sides, queries, reduced), None

    shared = (prenorm.places(x_BTD), prenorm.places(jnp.zeros((B, keys, 1))))
    return stack.run(body, layers, x_BTD, shared=shared, remat=cfg.compute.remat, unroll=cfg.compute.unroll)[0]


def block(cfg: SegformerConfig, p, x_BTD, sides, queries, reduced) -> jax.Array:
    h = norm.layer(p["attn_norm"], x_BTD, eps=EPS)
    source = h
    if "reduction" in p:
        source = prenorm.embed_patches(p["reduction"]["conv"], h.reshape(len(h), *sides, -1))
        source = norm.layer(p["reduction"]["norm"], source, eps=EPS)
    h, _ = attend_memory(p["attn"], h, source, None, queries, reduced, implementation=cfg.compute.attention)
    x_BTD = constrain(x_BTD + h, "batch", "seq", "embed")
    return constrain(x_BTD + mix_mlp(cfg, p, x_BTD, sides), "batch", "seq", "embed")


def mix_mlp(cfg: SegformerConfig, p, x_BTD, sides) -> jax.Array:
    """The feed-forward layer with a 3x3 convolution of each channel in its middle (section 3.1, "Mix-FFN")."""
    h = linear.linear(p["mlp"]["up"], norm.layer(p["mlp_norm"], x_BTD, eps=EPS))
    kernel = array(p["mlp"]["conv"]["kernel"], h.dtype)
    options = {"dimension_numbers": LAYOUT, "feature_group_count": h.shape[-1]}
    image = constrain(h, "batch", None, "mlp").reshape(len(h), *sides, -1)
    h = depthwise(image, kernel, (1, 1), "SAME", **options).reshape(h.shape) + p["mlp"]["conv"]["bias"]
    return linear.linear(p["mlp"]["down"], constrain(ACTIVATIONS[cfg.activation](h), "batch", "seq", "mlp"))


# ---------------------------------------------------------------- head


def decode(cfg: SegformerConfig, p, states: list[jax.Array], *, rng, train: bool) -> Out:
    """Logits (B, H/4, W/4, K).

    The published head brings every stage to the first one's resolution and maps them together. Maps of single places
    and bilinear resizing commute, so each stage is mapped at its own resolution here, which is less work.
    """
    B, H, W, _ = states[0].shape
    total, fuse = 0, array(p["fuse"], states[0].dtype)
    for n, x in enumerate(states):
        x = linear.project(linear.linear(p[f"project{n}"], x), fuse[len(states) - 1 - n])
        total += jax.image.resize(x, (B, H, W, x.shape[-1]), "bilinear") if n else x
    total, moved = batch_norm(p["norm"], total, train=train, momentum=MOMENTUM, eps=EPS)
    hidden = dropout.dropout(cfg.dropout, jax.nn.relu(total), rng)
    updates = {f"decoder/norm/{name}": value for name, value in moved.items()}
    return Out(constrain(linear.linear(p["head"], hidden), "batch", None, None, None), updates)


B0 = SegformerConfig()
B1 = dataclasses.replace(B0, channels=(64, 128, 320, 512))
B2 = dataclasses.replace(B1, depths=(3, 4, 6, 3), decoder_dim=768)
PRESETS = {
    "segformer-b0": B0,
    "segformer-b1": B1,
    "segformer-b2": B2,
    "segformer-b3": dataclasses.replace(B2, depths=(3, 4, 18, 3)),
    "segformer-b4": dataclasses.replace(B2, depths=(3, 8, 27, 3)),
    "segformer-b5": dataclasses.replace(B2, image_shape=(640, 640, 3), depths=(3, 6, 40, 3)),
}
