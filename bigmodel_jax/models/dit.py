"""DiT: a diffusion model whose network is a Transformer over patches (arXiv:2212.09748).

Timestep and class become one conditioning vector, which shifts, scales and gates every layer
(adaLN-zero). In a fresh model every layer is the identity, and the output is zero.

Shapes: B batch, H height, W width, C channels, T patches, P patch side, D embed, F mlp, L layers.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, normal, zeros
from bigmodel_jax.core.ranges import Count, CountOrZero, Depth, Share
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import prenorm
from bigmodel_jax.models.base import Entry, Model, ModelConfig, Out, parts_of
from bigmodel_jax.models.compute import Compute
from bigmodel_jax.models.prenorm import xavier
from bigmodel_jax.models.sizes import Multiple
from bigmodel_jax.nn import feedforward, linear, norm
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.attention.attention import Where

FREQUENCIES = 256  # sines and cosines of the timestep
NORM_EPS = 1e-6
# The layers' norms have no parameters of their own: the conditioning vector gives scale and shift.
UNIT = {"scale": np.float32(1), "bias": np.float32(0)}


SIZES = (
    *prenorm.SIZES,
    prenorm.Patches(all_whole=True),
    Multiple("embed_dim", 4, "positions have two dimensions, each with sines and cosines"),
)


@dataclasses.dataclass(frozen=True)
class DiTConfig(ModelConfig):
    """A diffusion Transformer (Peebles & Xie, arXiv:2212.09748).

    The reference implementation is facebookresearch/DiT. The defaults are those of DiT-XL/2 on the
    32 x 32 latents of 256-pixel ImageNet pictures.
    """

    image_shape: tuple[Count, Count, Count] = (32, 32, 4)  # height, width and channels of the latents
    num_classes: CountOrZero = 1000  # classes; their table has one more row, for a hidden label
    patch_size: Count = 2  # side of a patch, in latents' pixels
    num_layers: Depth = 28  # number of blocks
    embed_dim: Count = 1152  # width of the residual stream
    num_heads: Count = 16  # attention heads of a layer
    label_dropout: Share = 0.1
    """share of rows whose label training hides, so that guidance has an unconditional model
    (arXiv:2207.12598)"""
    learn_sigma: bool = True  # whether the output has twice the channels, the second half for a step's variance
    zero_init: bool = True
    """gates and output start at zero; False: plain adaptive layer norm, the paper's ablation
    (figure 5)"""
    compute: Compute = Compute()

    SIZES: ClassVar[tuple] = SIZES

    @property
    def mlp_dim(self) -> int:
        return 4 * self.embed_dim

    @property
    def out_channels(self) -> int:
        return self.image_shape[2] * (2 if self.learn_sigma else 1)

    def inputs(self):
        return {"image": self.image_shape, "label": (), "timestep": ()}

    def make(self) -> Model:
        return Model(spec(self), parts_of(self, enter, block, leave))

    @classmethod
    def tiny(cls) -> "DiTConfig":
        sizes = {"num_layers": 2, "embed_dim": 32, "num_heads": 4}
        return cls((8, 8, 1), num_classes=10, **sizes, learn_sigma=False, zero_init=False)


def modulation_spec(cfg: DiTConfig, num: int) -> params.Tree:
    """kernel (D, num, D) and bias (num, D): from the conditioning vector to `num` vectors."""
    init = zeros() if cfg.zero_init else normal(0.02)
    return {
        "kernel": Param((cfg.embed_dim, num, cfg.embed_dim), ("embed", None, "mlp"), init),
        "bias": Param((num, cfg.embed_dim), (None, "mlp"), zeros(), decay=False),
    }


def two_maps_spec(num: int, dim: int, axis: str | None = "embed") -> params.Tree:
    """up (num, D) and down (D, D) with biases. axis: the logical axis of `num`."""
    return {
        "up": linear.linear_spec(num, dim, axes=(axis, "mlp"), init=normal(0.02), bias=True),
        "down": linear.linear_spec(dim, dim, axes=("mlp", "embed"), init=normal(0.02), bias=True),
    }


def head_spec(cfg) -> params.Tree:
    """kernel (D, P P C_out) and bias: from a patch's state to its pixels."""
    init, pixels = zeros() if cfg.zero_init else normal(0.02), cfg.patch_size**2 * cfg.out_channels
    return linear.linear_spec(cfg.embed_dim, pixels, axes=("embed", None), init=init, bias=True)


def block_spec(cfg: DiTConfig) -> params.Tree:
    """One layer: modulation by six vectors, attention (D, D), and an MLP (D, F) and back."""
    D, H, F = cfg.embed_dim, cfg.num_heads, cfg.mlp_dim
    return {
        "modulation": modulation_spec(cfg, 6),
        # The initial values are those of one (3 D, D) matrix for queries, keys and values.
        "attn": attention.spec(D, H, H, D // H, init=xavier(D, 3 * D), out_init=xavier(D, D), bias=True),
        "mlp": feedforward.mlp_spec(D, F, init=xavier(D, F), out_init=xavier(F, D)),
    }


def spec(cfg: DiTConfig) -> params.Tree:
    """Patches, timestep MLP, labels (num_classes + 1, D), layers, and head (D, P P C_out)."""
    D, P, C = cfg.embed_dim, cfg.patch_size, cfg.image_shape[2]
    return {
        "patches": prenorm.patch_spec(P, C, D, init=xavier(P * P * C, D)),
        "time": two_maps_spec(FREQUENCIES, D, None),
        # The last row stands for a hidden label.
        "labels": linear.embedding_spec(cfg.num_classes + 1, D, init=normal(0.02), axis=None),
        "layers": params.stack(block_spec(cfg), cfg.num_layers),
        "modulation": modulation_spec(cfg, 2),
        "head": head_spec(cfg),
    }


def sines(positions: np.ndarray, dim: int) -> np.ndarray:
    """Returns (num, dim): sines, then cosines, of positions (num,).

    The dim/2 frequencies run from 1 to near 1/10,000.
    """
    angle = positions[:, None] / 10_000.0 ** (np.arange(dim // 2) / (dim // 2))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def positions(cfg, scale: float = 1.0) -> np.ndarray:
    """Returns (T, D) float32: position vectors, half for the column and half for the row.

    scale: a divisor of both.
    """
    rows, columns = (n // cfg.patch_size for n in cfg.image_shape[:2])
    row, column = np.divmod(np.arange(rows * columns), columns)
    half = cfg.embed_dim // 2
    return np.concatenate([sines(column / scale, half), sines(row / scale, half)], axis=1).astype(np.float32)


def embed_time(p, timestep_B) -> jax.Array:
    """Returns (B, D): the embedding of timesteps (B,), which may be fractions."""
    frequency = np.exp(-np.log(10_000.0) * np.arange(FREQUENCIES // 2) / (FREQUENCIES // 2)).astype(np.float32)
    # The angle is float32, because bfloat16 could not tell timestep 999 from 996.
    angle = timestep_B.astype(jnp.float32)[:, None] * frequency
    waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1).astype(p["up"]["kernel"].dtype)
    return linear.linear(p["down"], jax.nn.silu(linear.linear(p["up"], waves)))


def hidden_rows(batch, rng, rate: float) -> jax.Array:
    """Returns (B,) bool: the rows whose label or text is hidden from the model.

    These are the rows of batch["hidden"] and, with `rng`, others at random with probability `rate`.
    """
    num = batch["image"].shape[0]
    hidden = batch.get("hidden", jnp.zeros(num, bool))
    return hidden if rng is None or not rate else hidden | jax.random.bernoulli(rng, rate, (num,))


def modulations(p, condition_BD) -> list[jax.Array]:
    """A list of vectors (B, 1, D), made of the conditioning vector (B, D) after its SiLU."""
    out = linear.project(condition_BD, p["kernel"]) + p["bias"]
    return [out[:, None, n] for n in range(out.shape[1])]


def modulate(x_BTD, shift, scale) -> jax.Array:
    """LayerNorm of x (B, T, D) without parameters of its own, scaled by 1 + scale and shifted."""
    return norm.layer(UNIT, x_BTD, eps=NORM_EPS) * (1 + scale) + shift


def block(cfg: DiTConfig, p, x_BTD, _, condition_BD, where: Where, *, train: bool):
    """One layer, (B, T, D) -> (B, T, D), conditioned on condition (B, D)."""
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulations(p["modulation"], condition_BD)
    h = attention.qkv(p["attn"], modulate(x_BTD, shift, scale))
    h = attention.attend(*h, where, where, causal=False, implementation=cfg.compute.attention)
    x_BTD = constrain(x_BTD + gate * attention.project_out(p["attn"], h), "batch", "seq", "embed")
    h = feedforward.gelu_mlp(p["mlp"], modulate(x_BTD, mlp_shift, mlp_scale))
    return constrain(x_BTD + mlp_gate * h, "batch", "seq", "embed"), None


def enter(cfg: DiTConfig, p, batch, *, rng, train: bool, cache) -> Entry:
    """Embeds patches and condition.

    batch: image (B, H, W, C) with noise; timestep (B,); label (B,) int, where num_classes means no
    label; optionally hidden (B,) bool, the rows whose label is hidden.
    """
    x_BTD = prenorm.embed_patches(p["patches"], batch["image"])
    x_BTD = constrain(x_BTD + jnp.asarray(positions(cfg), x_BTD.dtype), "batch", "seq", "embed")
    hidden = hidden_rows(batch, rng, cfg.label_dropout)
    label = linear.embed(p["labels"], jnp.where(hidden, cfg.num_classes, batch["label"]))
    condition_BD = jax.nn.silu(embed_time(p["time"], batch["timestep"]) + label)
    return Entry(x_BTD, shared=(condition_BD, prenorm.places(x_BTD)))


def leave(cfg: DiTConfig, p, entry: Entry, x_BTD, ys, batch, *, train: bool) -> Out:
    """The predicted noise of each image, (B, H, W, C).

    With learn_sigma it is the first C of 2 C channels.
    """
    shift, scale = modulations(p["modulation"], entry.shared[0])
    flat = linear.linear(p["head"], modulate(x_BTD, shift, scale))
    return Out(prenorm.unpatchify(flat, cfg.image_shape, cfg.patch_size))


WIDTHS = {
    "s": {"num_layers": 12, "embed_dim": 384, "num_heads": 6},
    "b": {"num_layers": 12, "embed_dim": 768, "num_heads": 12},
    "l": {"num_layers": 24, "embed_dim": 1024, "num_heads": 16},
    "xl": {"num_layers": 28, "embed_dim": 1152, "num_heads": 16},
}
PRESETS = {f"dit-{s}/{p}": DiTConfig(patch_size=p, **sizes) for s, sizes in WIDTHS.items() for p in (2, 4, 8)}
