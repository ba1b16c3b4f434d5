"""The autoencoder of latent diffusion (Rombach et al., arXiv:2112.10752, appendix G), diffusers'
AutoencoderKL.

The encoder gives a mean and a log variance for each latent value. The decoder makes an image of a
latent drawn from that normal distribution. Each level but the last halves height and width. A
diffusion model that trains on the latents sees fewer values than pixels.

Shapes: B batch, H height, W width, C channels, h and w the latent's height and width, Z latent
channels.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, normal, zeros
from bigmodel_jax.core.ranges import Blocks, Count
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models.base import Model, ModelConfig, Out
from bigmodel_jax.models.sizes import Cut
from bigmodel_jax.nn import group_norm, linear

MOST_LEVELS = 8
LOG_VARIANCES = (-30.0, 20.0)  # log variances are cut off at these, as in the published code


class Autoencoded(NamedTuple):
    """image: the reconstruction (B, H, W, C); mean, log_variance: the latent's (B, h, w, Z)."""

    image: jax.Array
    mean: jax.Array
    log_variance: jax.Array


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig(ModelConfig):
    """The defaults are the autoencoder of Stable Diffusion 3."""

    image_shape: tuple[Count, Count, Count] = (1024, 1024, 3)
    channels: tuple[Count, ...] = (128, 256, 512, 512)
    """the channels of each level, from the image's resolution down; each level but the last halves
    height and width"""
    blocks_per_level: Blocks = 2
    "residual blocks of an encoder's level; a decoder's level has one more"
    latent_channels: Count = 16
    norm_groups: Count = 32
    "groups of channels that a group norm normalises together"
    latent_convolutions: bool = False
    """a 1x1 convolution after the encoder and one before the decoder, as Stable Diffusion 1 and 2
    have"""
    attention: bool = True
    "one attention over all pixels of the smallest level, in encoder and decoder"

    SIZES: ClassVar[tuple] = (Cut("channels", "mlp"),)

    @property
    def factor(self) -> int:
        """How many times smaller the latent's height and width are."""
        return 2 ** (len(self.channels) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, Z) of one image's latent."""
        height, width, _ = self.image_shape
        return height // self.factor, width // self.factor, self.latent_channels

    @property
    def encoded_channels(self) -> int:
        """The encoder's channels: a mean and a log variance for each latent channel."""
        return 2 * self.latent_channels

    def inputs(self):
        return {"image": self.image_shape}

    def encode(self, p: params.Tree, image_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Does what the function `encode` below does."""
        return encode(self, p, image_BHWC)

    def decode(self, p: params.Tree, latent_BhwZ: jax.Array) -> jax.Array:
        """Does what the function `decode` below does."""
        return decode(self, p, latent_BhwZ)

    def make(self) -> Model:
        return Model(spec(self), functools.partial(apply, self))

    def validate(self, parallel) -> None:
        super().validate(parallel)
        if not 1 <= len(self.channels) <= MOST_LEVELS:
            raise ValueError(f"model.channels = {self.channels}; it must have 1 to {MOST_LEVELS} entries, one a level")
        if odd := [n for n in self.channels if n % self.norm_groups]:
            raise ValueError(
                f"model.norm_groups = {self.norm_groups} does not divide {odd[0]} of model.channels = {self.channels}; "
                "allowed: a common divisor of all levels"
            )
        if any(n % self.factor for n in self.image_shape[:2]):
            raise ValueError(
                f"model.image_shape = {self.image_shape}: {len(self.channels)} levels need a height and width that "
                f"{self.factor} divides"
            )

    @classmethod
    def tiny(cls) -> "AutoencoderConfig":
        return cls((8, 8, 1), channels=(8, 16), blocks_per_level=1, latent_channels=2, norm_groups=4)


# parameters


def conv_spec(width: int, in_dim: int, out_dim: int, axes=("embed", "mlp")) -> params.Tree:
    """kernel (width, width, in, out) and bias (out,) of a square convolution."""
    init = normal((width * width * in_dim) ** -0.5)
    return {
        "kernel": Param((width, width, in_dim, out_dim), (None, None, *axes), init),
        "bias": Param((out_dim,), (axes[1],), zeros()),
    }


def block_spec(in_dim: int, out_dim: int) -> params.Tree:
    """One residual block. A 1x1 convolution is its shortcut where the channels change."""
    parts = {
        "norm1": group_norm.spec(in_dim),
        "conv1": conv_spec(3, in_dim, out_dim),
        "norm2": group_norm.spec(out_dim),
        "conv2": conv_spec(3, out_dim, out_dim),
    }
    return parts | ({"shortcut": conv_spec(1, in_dim, out_dim)} if in_dim != out_dim else {})


def attention_spec(dim: int) -> params.Tree:
    """One head of attention over pixels, with the norm before it."""
    maps = {name: linear.linear_spec(dim, dim, axes=("embed", "mlp"), bias=True) for name in ("q", "k", "v")}
    return {"norm": group_norm.spec(dim), **maps, "o": linear.linear_spec(dim, dim, axes=("mlp", "embed"), bias=True)}


def middle_spec(cfg: AutoencoderConfig) -> params.Tree:
    """Two residual blocks at the smallest resolution, with attention between them."""
    dim = cfg.channels[-1]
    attention = {"attention": attention_spec(dim)} if cfg.attention else {}
    return {"block0": block_spec(dim, dim), **attention, "block1": block_spec(dim, dim)}


def level_spec(in_dim: int, out_dim: int, blocks: int, resize: str = "") -> params.Tree:
    """The residual blocks of one level, and the convolution that changes its resolution, named by
    `resize`.
    """
    level = {f"block{n}": block_spec(out_dim if n else in_dim, out_dim) for n in range(blocks)}
    return level | ({resize: conv_spec(3, out_dim, out_dim)} if resize else {})


def encoder_spec(cfg: AutoencoderConfig) -> params.Tree:
    """The layers from an image to the numbers that make its latent: a mean and a log variance."""
    channels, last = cfg.channels, len(cfg.channels) - 1
    return {
        "enter": conv_spec(3, cfg.image_shape[2], channels[0], axes=(None, "mlp")),
        **{
            f"level{n}": level_spec(channels[max(n - 1, 0)], dim, cfg.blocks_per_level, "narrow" if n < last else "")
            for n, dim in enumerate(channels)
        },
        "middle": middle_spec(cfg),
        "norm": group_norm.spec(channels[-1]),
        "leave": conv_spec(3, channels[-1], cfg.encoded_channels, axes=("embed", None)),
    }


def decoder_spec(cfg: AutoencoderConfig) -> params.Tree:
    """The layers from a latent to the image. Level 0 has the smallest resolution."""
    channels, last = cfg.channels[::-1], len(cfg.channels) - 1
    return {
        "enter": conv_spec(3, cfg.latent_channels, channels[0], axes=(None, "mlp")),
        "middle": middle_spec(cfg),
        **{
            f"level{n}": level_spec(channels[max(n - 1, 0)], dim, cfg.blocks_per_level + 1, "widen" if n < last else "")
            for n, dim in enumerate(channels)
        },
        "norm": group_norm.spec(channels[-1]),
        "leave": conv_spec(3, channels[-1], cfg.image_shape[2], axes=("embed", None)),
    }


def spec(cfg: AutoencoderConfig) -> params.Tree:
    """All parameters of encoder and decoder."""
    Z, E = cfg.latent_channels, cfg.encoded_channels
    parts = {"encoder": encoder_spec(cfg), "decoder": decoder_spec(cfg)}
    if cfg.latent_convolutions:
        parts["encoder"]["latent"] = conv_spec(1, E, E, axes=(None, None))
        parts["decoder"]["latent"] = conv_spec(1, Z, Z, axes=(None, None))
    return parts


# computation


def conv(p: params.Tree, x_BHWC: jax.Array, stride: int = 1, padding="SAME") -> jax.Array:
    """A square convolution; "SAME" with stride 1 keeps height and width.

    Every device holds all channels of the output. Without this constraint, XLA's partitioner made
    wrong gradients on the mesh data x fsdp x tensor (JAX 0.12, CPU; tests/contract/models_test.py
    finds it). SegFormer and Whisper constrain activations too. U-Net, ResNet, EfficientNet and CNN
    have no constraint; tests/contract/convolutions_test.py compares their gradients on six meshes.
    Only this family has group norms beside convolutions. Whether the partitioner fails at them is
    not known.
    """
    layout = ("NHWC", "HWIO", "NHWC")
    y_BHWC = jax.lax.conv_general_dilated(x_BHWC, p["kernel"], (stride, stride), padding, dimension_numbers=layout)
    return constrain(y_BHWC + p["bias"], "batch", None, None, None)


def block(cfg: AutoencoderConfig, p: params.Tree, x_BHWC: jax.Array) -> jax.Array:
    """One residual block: (norm, SiLU, convolution) twice, beside the shortcut."""
    h = conv(p["conv1"], jax.nn.silu(group_norm.apply(p["norm1"], x_BHWC, cfg.norm_groups)))
    h = conv(p["conv2"], jax.nn.silu(group_norm.apply(p["norm2"], h, cfg.norm_groups)))
    return (conv(p["shortcut"], x_BHWC) if "shortcut" in p else x_BHWC) + h


def attend(cfg: AutoencoderConfig, p: params.Tree, x_BHWC: jax.Array) -> jax.Array:
    """Adds one head of attention over all pixels to x. The softmax is computed in float32."""
    B, H, W, C = x_BHWC.shape
    h_BNC = group_norm.apply(p["norm"], x_BHWC, cfg.norm_groups).reshape(B, H * W, C)
    q, k, v = (linear.linear(p[name], h_BNC) for name in ("q", "k", "v"))
    scores = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32) * C**-0.5
    shares = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return x_BHWC + linear.linear(p["o"], shares @ v).reshape(x_BHWC.shape)


def middle(cfg: AutoencoderConfig, p: params.Tree, x_BHWC: jax.Array) -> jax.Array:
    """The blocks that encoder and decoder apply at the smallest resolution."""
    x_BHWC = block(cfg, p["block0"], x_BHWC)
    if cfg.attention:
        x_BHWC = attend(cfg, p["attention"], x_BHWC)
    return block(cfg, p["block1"], x_BHWC)


def leave(cfg: AutoencoderConfig, p: params.Tree, x_BHWC: jax.Array) -> jax.Array:
    """The last norm and convolution of encoder or decoder."""
    return conv(p["leave"], jax.nn.silu(group_norm.apply(p["norm"], x_BHWC, cfg.norm_groups)))


def encoded(cfg: AutoencoderConfig, p: params.Tree, image_BHWC: jax.Array) -> jax.Array:
    """The encoder's output (B, h, w, encoded_channels) for images of -1 .. 1; p: all parameters."""
    p = p["encoder"]
    x = conv(p["enter"], image_BHWC)
    for n in range(len(cfg.channels)):
        level = p[f"level{n}"]
        for m in range(cfg.blocks_per_level):
            x = block(cfg, level[f"block{m}"], x)
        if "narrow" in level:
            # The published encoder pads with zeros at the right and below only.
            x = conv(level["narrow"], x, stride=2, padding=((0, 1), (0, 1)))
    x = leave(cfg, p, middle(cfg, p["middle"], x))
    return conv(p["latent"], x) if "latent" in p else x


def encode(cfg: AutoencoderConfig, p: params.Tree, image_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean, log variance) of the latent, (B, h, w, Z) each; arguments as in `encoded`."""
    mean, log_variance = jnp.split(encoded(cfg, p, image_BHWC), 2, axis=-1)
    return mean, jnp.clip(log_variance, *LOG_VARIANCES)


def decode(cfg: AutoencoderConfig, p: params.Tree, latent_BhwZ: jax.Array) -> jax.Array:
    """The images (B, H, W, C) that the decoder makes of latents; p: all parameters."""
    p = p["decoder"]
    x = conv(p["enter"], conv(p["latent"], latent_BhwZ) if "latent" in p else latent_BhwZ)
    x = middle(cfg, p["middle"], x)
    for n in range(len(cfg.channels)):
        level = p[f"level{n}"]
        for m in range(cfg.blocks_per_level + 1):
            x = block(cfg, level[f"block{m}"], x)
        if "widen" in level:
            x = conv(level["widen"], jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
    return leave(cfg, p, x)


def apply(cfg: AutoencoderConfig, p: params.Tree, batch: dict, *, rng=None, train: bool = False, cache=None) -> Out:
    """`Autoencoded` of batch["image"] (B, H, W, C).

    In training, the latent is drawn with `rng`. In evaluation, it is the mean.
    """
    image = batch["image"].astype(p["encoder"]["enter"]["kernel"].dtype)
    mean, log_variance = encode(cfg, p, image)
    latent = mean
    if train and rng is not None:
        latent = mean + jnp.exp(log_variance / 2) * jax.random.normal(rng, mean.shape, mean.dtype)
    return Out(Autoencoded(decode(cfg, p, latent), mean, log_variance))


PRESETS = {
    "sd3-autoencoder": AutoencoderConfig(),
    "sd1-autoencoder": AutoencoderConfig((512, 512, 3), latent_channels=4, latent_convolutions=True),
}
