"""SegFormer: four stages of Transformer layers at falling resolution, and a head of linear maps.

Xie et al., arXiv:2105.15203. A stage cuts its input into overlapping patches by a strided
convolution. Its keys and values have a lower resolution than its queries ("sequence reduction"),
and a depthwise convolution in the feed-forward layer replaces positions. The head projects the
output of every stage to one width, resizes it to the first stage's resolution, and adds all of
them. It gives class logits at a quarter of the image's height and width.

Shapes: B batch, H height, W width, C channels, T = H W queries, S keys, D width of a stage, F mlp,
E width of the head, K classes.
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

EPS = 1e-5  # epsilon of every norm: transformers' layers use torch's default and ignore config.json's value
MOMENTUM = 0.9  # momentum of the head's batch norm; torch writes this momentum as 0.1
LAYOUT = ("NHWC", "HWIO", "NHWC")


@dataclasses.dataclass(frozen=True)
class SegformerConfig(ModelConfig):
    """A segmentation network (Xie et al., arXiv:2105.15203). Each tuple has one entry per stage.

    The reference implementation is transformers' `SegformerForSemanticSegmentation`. The defaults
    are those of SegFormer-B0 for ADE20K.
    """

    image_shape: tuple[Count, Count, Count] = (512, 512, 3)  # height, width and channels
    num_classes: Count = 150  # number of classes
    depths: tuple[Blocks, ...] = (2, 2, 2, 2)  # layers
    channels: tuple[Count, ...] = (32, 64, 160, 256)  # width of the layers
    num_heads: tuple[Count, ...] = (1, 2, 5, 8)  # attention heads
    mlp_ratios: tuple[Count, ...] = (4, 4, 4, 4)  # hidden width of the feed-forward layer per channel
    reductions: tuple[Count, ...] = (8, 4, 2, 1)  # side of the square of places that make one key
    patch_sizes: tuple[Count, ...] = (7, 3, 3, 3)  # kernel width of the convolution that makes patches
    strides: tuple[Count, ...] = (4, 2, 2, 2)  # stride of the convolution that makes patches
    decoder_dim: Count = 256  # width of the head
    dropout: ShareBelowOne = 0.1  # dropout rate before the head's last map
    activation: Activation = "gelu"  # activation of the feed-forward layer
    init_std: NonNegative = 0.02  # standard deviation of the initial weights
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
                    f"model.reductions = {self.reductions} leaves no key; give a larger image, or smaller reductions"
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


def conv_spec(size: int, channels: int, dim: int, init: Init) -> params.Tree:
    """kernel (size, size, channels, dim) and bias (dim,)."""
    return prenorm.patch_spec(size, channels, dim, init=init)


def layer_spec(cfg: SegformerConfig, stage: int) -> params.Tree:
    """One layer of a stage: attention, with reduction > 1 its convolution, and Mix-FFN (D, F)."""
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
    """The stages, and the decoder's projections, fusion, batch norm and head."""
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
        # One matrix per stage. The last stage's comes first, as in published files.
        "fuse": Param((len(cfg.channels), E, E), (None, "mlp", "embed"), init),
        "norm": {"scale": Param((E,), (None,), ones()), "bias": Param((E,), (None,), zeros())} | statistics,
        "head": linear.linear_spec(E, cfg.num_classes, axes=("embed", None), init=init, bias=True),
    }
    return tree


def array(w, dtype) -> jax.Array:
    """A weight that no product reads, as an array with its adapters merged."""
    return w.dense(dtype) if isinstance(w, Adapted) else storage.dense(w, dtype)


def conv(p: dict, x_BHWC: jax.Array, stride: int) -> jax.Array:
    """A convolution with bias, padded by half its width on every side."""
    kernel = array(p["kernel"], x_BHWC.dtype)
    pad = kernel.shape[0] // 2
    y = jax.lax.conv_general_dilated(x_BHWC, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=LAYOUT)
    return y + p["bias"]


def encode(cfg: SegformerConfig, p, image_BHWC: jax.Array) -> list[jax.Array]:
    """The outputs of all stages, (B, H, W, D) each, for images (B, H, W, C).

    Every stage has its own H, W and D.
    """
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
    """The layers of one stage, (B, T, D) -> (B, T, D); sides: height and width of the map."""
    size = cfg.reductions[stage]
    B, keys = x_BTD.shape[0], (sides[0] // size) * (sides[1] // size)

    def body(layer, x, _, queries, reduced):
        return block(cfg, layer, x, sides, queries, reduced), None

    shared = (prenorm.places(x_BTD), prenorm.places(jnp.zeros((B, keys, 1))))
    return stack.run(body, layers, x_BTD, shared=shared, remat=cfg.compute.remat, unroll=cfg.compute.unroll)[0]


def block(cfg: SegformerConfig, p, x_BTD, sides, queries, reduced) -> jax.Array:
    """One layer, (B, T, D) -> (B, T, D); queries and reduced: where queries and keys stand."""
    h = norm.layer(p["attn_norm"], x_BTD, eps=EPS)
    source = h
    if "reduction" in p:
        source = prenorm.embed_patches(p["reduction"]["conv"], h.reshape(h.shape[0], *sides, -1))
        source = norm.layer(p["reduction"]["norm"], source, eps=EPS)
    h, _ = attend_memory(p["attn"], h, source, None, queries, reduced, implementation=cfg.compute.attention)
    x_BTD = constrain(x_BTD + h, "batch", "seq", "embed")
    return constrain(x_BTD + mix_mlp(cfg, p, x_BTD, sides), "batch", "seq", "embed")


def mix_mlp(cfg: SegformerConfig, p, x_BTD, sides) -> jax.Array:
    """Mix-FFN, (B, T, D) -> (B, T, D): an MLP with a depthwise 3x3 convolution (section 3.1)."""
    h = linear.linear(p["mlp"]["up"], norm.layer(p["mlp_norm"], x_BTD, eps=EPS))
    kernel = array(p["mlp"]["conv"]["kernel"], h.dtype)
    options = {"dimension_numbers": LAYOUT, "feature_group_count": h.shape[-1]}
    image = constrain(h, "batch", None, "mlp").reshape(h.shape[0], *sides, -1)
    h = depthwise(image, kernel, (1, 1), "SAME", **options).reshape(h.shape) + p["mlp"]["conv"]["bias"]
    return linear.linear(p["mlp"]["down"], constrain(ACTIVATIONS[cfg.activation](h), "batch", "seq", "mlp"))


def decode(cfg: SegformerConfig, p, states: list[jax.Array], *, rng, train: bool) -> Out:
    """Logits (B, H/4, W/4, K), for images (B, H, W).

    The published head resizes every stage's output before it maps them together. A map of single
    places commutes with bilinear resizing, so each output is mapped at its own, lower resolution
    here, which takes less work.
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
