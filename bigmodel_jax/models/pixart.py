"""PixArt-alpha: a DiT conditioned on a text; also a DiT with a text tower of its own.

Chen et al., arXiv:2310.00426. Each layer has cross-attention to the text's states after DiT's
self-attention. The timestep alone shifts, scales and gates: one projection serves all layers, and
each layer adds a table of its own to it (adaLN-single, section 2.3).

Shapes: B batch, H height, W width, C channels, T patches, S text tokens, P patch side, D embed, F
mlp, E text, L layers.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, normal, zeros
from bigmodel_jax.core.ranges import Count, Depth, Positive, Share
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import clip, dit, prenorm
from bigmodel_jax.models.base import Entry, Model, ModelConfig, Out, parts_of
from bigmodel_jax.models.clip import TextTower
from bigmodel_jax.models.compute import Compute
from bigmodel_jax.models.prenorm import xavier
from bigmodel_jax.nn import feedforward, linear
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.attention.attention import Where


@dataclasses.dataclass(frozen=True)
class PixArtConfig(ModelConfig):
    """A text-to-image diffusion Transformer (Chen et al., arXiv:2310.00426).

    The reference implementation is diffusers' `PixArtTransformer2DModel`. The defaults are those of
    PixArt-XL/2 on the 64 x 64 latents of 512-pixel pictures, conditioned on T5-XXL's states.
    """

    image_shape: tuple[Count, Count, Count] = (64, 64, 4)  # height, width and channels of the latents
    patch_size: Count = 2  # side of a patch, in latents' pixels
    num_layers: Depth = 28  # number of blocks
    embed_dim: Count = 1152  # width of the residual stream
    num_heads: Count = 16  # attention heads of a layer
    text_dim: Count = 4096
    "width of the text's states"
    text_dropout: Share = 0.1
    """share of rows whose text training hides, so that guidance has an unconditional model
    (arXiv:2207.12598)"""
    position_scale: Positive = 1.0
    """divisor of the positions, so that larger pictures have the range of smaller ones (2 at 128 x
    128 latents)"""
    learn_sigma: bool = True  # whether the output has twice the channels, the second half for a step's variance
    zero_init: bool = True
    "whether the output of cross-attention and the head start at zero, as published"
    compute: Compute = Compute()

    SIZES: ClassVar[tuple] = dit.SIZES

    @property
    def mlp_dim(self) -> int:
        return 4 * self.embed_dim

    @property
    def out_channels(self) -> int:
        return self.image_shape[2] * (2 if self.learn_sigma else 1)

    def inputs(self):
        return {"image": self.image_shape, "text_states": None, "timestep": ()}

    def make(self) -> Model:
        return Model(spec(self), parts_of(self, enter, block, leave))

    @classmethod
    def tiny(cls) -> "PixArtConfig":
        sizes = {"num_layers": 2, "embed_dim": 32, "num_heads": 4, "text_dim": 24}
        return cls((8, 8, 1), **sizes, learn_sigma=False, zero_init=False)


@dataclasses.dataclass(frozen=True)
class TextToImageConfig(PixArtConfig):
    """PixArt with a text tower that trains along with it, for batches that hold tokens.

    text: the tower. The other fields are those of `PixArtConfig`.
    """

    text_dim: Count = 512
    text: TextTower = TextTower()

    def inputs(self):
        return {"image": self.image_shape, "tokens": None, "timestep": ()}

    def make(self) -> Model:
        return Model(spec(self) | {"text": clip.text_spec(self.text)}, parts_of(self, enter_tokens, block, leave))

    def validate(self, parallel) -> None:
        super().validate(parallel)
        if self.text_dim != self.text.embed_dim:
            raise ValueError(f"model.text_dim = {self.text_dim} is not model.text.embed_dim = {self.text.embed_dim}")

    @classmethod
    def tiny(cls) -> "TextToImageConfig":
        tower = TextTower(num_layers=1, embed_dim=24, num_heads=4, mlp_dim=48, vocab_size=64, max_seq_len=16)
        return dataclasses.replace(cls(), **vars(PixArtConfig.tiny()), text=tower)


def block_spec(cfg: PixArtConfig) -> params.Tree:
    """One layer: modulation (6, D), self-attention, cross-attention, and an MLP (D, F)."""
    D, H, F = cfg.embed_dim, cfg.num_heads, cfg.mlp_dim
    out = zeros() if cfg.zero_init else normal(0.02)
    return {
        "modulation": Param((6, D), (None, "embed"), normal(D**-0.5), decay=False),
        # The bounds of the initial values are those of one (3 D, D) matrix for queries, keys and
        # values, and of one (2 D, D) matrix for keys and values of the text.
        "attn": attention.spec(D, H, H, D // H, init=xavier(D, 3 * D), out_init=xavier(D, D), bias=True),
        "text_attn": attention.spec(D, H, H, D // H, init=xavier(D, 2 * D), out_init=out, bias=True)
        | {"q": Param((D, H, D // H), ("embed", "heads", "head_dim"), xavier(D, D))},
        "mlp": feedforward.mlp_spec(D, F, init=xavier(D, F), out_init=xavier(F, D)),
    }


def spec(cfg: PixArtConfig) -> params.Tree:
    """Patches, timestep MLP and projection, text projection, stacked layers, and the head."""
    D, P, C = cfg.embed_dim, cfg.patch_size, cfg.image_shape[2]

    return {
        "patches": prenorm.patch_spec(P, C, D, init=xavier(P * P * C, D)),
        "time": dit.two_maps_spec(dit.FREQUENCIES, D, None),
        "time_modulation": {
            "kernel": Param((D, 6, D), ("embed", None, "mlp"), normal(0.02)),
            "bias": Param((6, D), (None, "mlp"), zeros(), decay=False),
        },
        "text_projection": dit.two_maps_spec(cfg.text_dim, D),
        "layers": params.stack(block_spec(cfg), cfg.num_layers),
        "modulation": Param((2, D), (None, "embed"), normal(D**-0.5), decay=False),
        "head": dit.head_spec(cfg),
    }


def project_text(p, states_BSE: jax.Array, hidden_B: jax.Array) -> jax.Array:
    """Returns (B, S, D): the text's states (B, S, E) after an MLP.

    The states of a hidden text are zeros before the MLP.
    """
    states_BSE = jnp.where(hidden_B[:, None, None], 0, states_BSE).astype(p["up"]["kernel"].dtype)
    return feedforward.gelu_mlp(p, states_BSE)


def attend_text(cfg: PixArtConfig, p, x_BTD, text_BSD, here: Where, there: Where) -> jax.Array:
    """Returns (B, T, D): attention of the patches to the text's tokens (B, S, D)."""
    q = linear.project(x_BTD, p["q"]) + p["q_bias"]
    k = linear.project(text_BSD, p["k"]) + p["k_bias"]
    v = linear.project(text_BSD, p["v"]) + p["v_bias"]
    h = attention.attend(q, k, v, here, there, causal=False, implementation=cfg.compute.attention)
    return attention.project_out(p, h)


def block(cfg: PixArtConfig, p, x_BTD, _, time_B6D, text_BSD, here: Where, there: Where, *, train: bool):
    """One layer, (B, T, D) -> (B, T, D); time_B6D: the projected timestep; text (B, S, D)."""
    six = (p["modulation"] + time_B6D)[:, :, None]
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (six[:, n] for n in range(6))
    h = attention.qkv(p["attn"], dit.modulate(x_BTD, shift, scale))
    h = attention.attend(*h, here, here, causal=False, implementation=cfg.compute.attention)
    x_BTD = constrain(x_BTD + gate * attention.project_out(p["attn"], h), "batch", "seq", "embed")
    # Cross-attention has no norm before it, as published.
    x_BTD = constrain(x_BTD + attend_text(cfg, p["text_attn"], x_BTD, text_BSD, here, there), "batch", "seq", "embed")
    h = feedforward.gelu_mlp(p["mlp"], dit.modulate(x_BTD, mlp_shift, mlp_scale))
    return constrain(x_BTD + mlp_gate * h, "batch", "seq", "embed"), None


def positions(cfg: PixArtConfig) -> np.ndarray:
    """Returns (T, D) float32: DiT's positions, divided by `position_scale`."""
    return dit.positions(cfg, cfg.position_scale)


def enter(cfg: PixArtConfig, p, batch, *, rng, train: bool, cache) -> Entry:
    """Embeds patches, timestep and text.

    batch: image (B, H, W, C) with noise, timestep (B,), text_states (B, S, E), segment_ids (B, S),
    0 being padding; optionally hidden (B,) bool, the rows whose text is hidden.
    """
    x_BTD = prenorm.embed_patches(p["patches"], batch["image"])
    x_BTD = constrain(x_BTD + jnp.asarray(positions(cfg), x_BTD.dtype), "batch", "seq", "embed")
    time_BD = dit.embed_time(p["time"], batch["timestep"])
    time_B6D = linear.project(jax.nn.silu(time_BD), p["time_modulation"]["kernel"]) + p["time_modulation"]["bias"]
    hidden = dit.hidden_rows(batch, rng, cfg.text_dropout)
    text_BSD = constrain(project_text(p["text_projection"], batch["text_states"], hidden), "batch", None, "embed")
    segments = batch.get("segment_ids", jnp.ones(text_BSD.shape[:2], jnp.int32))
    there = Where(jnp.zeros_like(segments), segments)
    return Entry(x_BTD, shared=(time_B6D, text_BSD, prenorm.places(x_BTD), there), kept=time_BD)


def enter_tokens(cfg: TextToImageConfig, p, batch, *, rng, train: bool, cache) -> Entry:
    """As `enter`, for a batch with tokens (B, S) int instead of text_states."""
    states = clip.text_states(cfg.text, p["text"], batch, causal=False)
    return enter(cfg, p, batch | {"text_states": states}, rng=rng, train=train, cache=cache)


def leave(cfg: PixArtConfig, p, entry: Entry, x_BTD, ys, batch, *, train: bool) -> Out:
    """The predicted noise of each image, (B, H, W, C).

    With learn_sigma it is the first C of 2 C channels.
    """
    shift, scale = ((p["modulation"] + entry.kept[:, None])[:, n, None] for n in range(2))
    flat = linear.linear(p["head"], dit.modulate(x_BTD, shift, scale))
    return Out(prenorm.unpatchify(flat, cfg.image_shape, cfg.patch_size))


# The paper's model at 256 and 512 pixels. The 1,024-pixel model is PixArt-Sigma's
# (arXiv:2403.04692), because it has no embedding of the picture's size.
PRESETS = {
    "pixart-xl/2-256": PixArtConfig(image_shape=(32, 32, 4)),
    "pixart-xl/2-512": PixArtConfig(),
    "pixart-sigma-xl/2-1024": PixArtConfig(image_shape=(128, 128, 4), position_scale=2.0),
}
