"""PixArt-alpha: a DiT told by a text what to show (Chen et al., arXiv:2310.00426); also a DiT with a text tower of its own.

Beside DiT's self-attention each layer attends to the text's states. The timestep alone shifts, scales and gates, by one
projection for all layers to which each adds a table (adaLN-single, section 2.3).

Shapes: B batch, H height, W width, C channels, T patches, S text tokens, P patch side, D embed, E text, L layers.
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
    """Defaults: PixArt-XL/2 on the 64 x 64 latents of 512-pixel pictures, told by the states of T5-XXL."""

    image_shape: tuple[Count, Count, Count] = (64, 64, 4)
    patch_size: Count = 2
    num_layers: Depth = 28
    embed_dim: Count = 1152
    num_heads: Count = 16
    text_dim: Count = 4096
    "width of the text's states"
    text_dropout: Share = 0.1
    "how often training hides the text, so that guidance has an unconditional model (arXiv:2207.12598)"
    position_scale: Positive = 1.0
    "positions are divided by it, so that larger pictures see those of smaller ones (2 at 128 x 128 latents)"
    learn_sigma: bool = True  # twice the channels come out, the second half for the variance of a step
    zero_init: bool = True
    "attention to the text and the output start at zero, as published"
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
    """PixArt with a text tower that is trained along with it, for texts as tokens."""

    text_dim: Count = 512
    text: TextTower = TextTower()

    def inputs(self):
        return {"image": self.image_shape, "tokens": None, "timestep": ()}

    def make(self) -> Model:
        return Model(spec(self) | {"text": text_spec(self.text)}, parts_of(self, enter_tokens, block, leave))

    def validate(self, parallel) -> None:
        super().validate(parallel)
        if self.text_dim != self.text.embed_dim:
            raise ValueError(f"model.text_dim = {self.text_dim} is not model.text.embed_dim = {self.text.embed_dim}")

    @classmethod
    def tiny(cls) -> "TextToImageConfig":
        tower = TextTower(num_layers=1, embed_dim=24, num_heads=4, mlp_dim=48, vocab_size=64, max_seq_len=16)
        return dataclasses.replace(cls(), **vars(PixArtConfig.tiny()), text=tower)


def block_spec(cfg: PixArtConfig) -> params.Tree:
    D, H, F = cfg.embed_dim, cfg.num_heads, cfg.mlp_dim
    out = zeros() if cfg.zero_init else normal(0.02)
    return {
        "modulation": Param((6, D), (None, "embed"), normal(D**-0.5), decay=False),
        # Queries, keys and values start as one (3 D, D) matrix, keys and values of the text as one (2 D, D) matrix.
        "attn": attention.spec(D, H, H, D // H, init=xavier(D, 3 * D), out_init=xavier(D, D), bias=True),
        "text_attn": attention.spec(D, H, H, D // H, init=xavier(D, 2 * D), out_init=out, bias=True)
        | {"q": Param((D, H, D // H), ("embed", "heads", "head_dim"), xavier(D, D))},
        "mlp": feedforward.mlp_spec(D, F, init=xavier(D, F), out_init=xavier(F, D)),
    }


def spec(cfg: PixArtConfig) -> params.Tree:
    D, P, C = cfg.embed_dim, cfg.patch_size, cfg.image_shape[2]

    def layer(num: int, dim: int, axes=("mlp", "embed"), init=normal(0.02)) -> dict:
        return linear.linear_spec(num, dim, axes=axes, init=init, bias=True)

    return {
        "patches": prenorm.patch_spec(P, C, D, init=xavier(P * P * C, D)),
        "time": {"up": layer(dit.FREQUENCIES, D, axes=(None, "mlp")), "down": layer(D, D)},
        "time_modulation": {
            "kernel": Param((D, 6, D), ("embed", None, "mlp"), normal(0.02)),
            "bias": Param((6, D), (None, "mlp"), zeros(), decay=False),
        },
        "text_projection": {"up": layer(cfg.text_dim, D, axes=("embed", "mlp")), "down": layer(D, D)},
        "layers": params.stack(block_spec(cfg), cfg.num_layers),
        "modulation": Param((2, D), (None, "embed"), normal(D**-0.5), decay=False),
        "head": layer(
            D, P * P * cfg.out_channels, axes=("embed", None), init=zeros() if cfg.zero_init else normal(0.02)
        ),
    }


def text_spec(tower: TextTower) -> params.Tree:
    return clip.text_spec(tower, clip.layers_spec(tower), normal(0.02))


def project_text(p, states_BSE: jax.Array, hidden_B: jax.Array) -> jax.Array:
    """(B, S, D); a hidden text's states are zeros before the projection."""
    states_BSE = jnp.where(hidden_B[:, None, None], 0, states_BSE).astype(p["up"]["kernel"].dtype)
    return feedforward.gelu_mlp(p, states_BSE)


def attend_text(cfg: PixArtConfig, p, x_BTD, text_BSD, here: Where, there: Where) -> jax.Array:
    """(B, T, D): patches look at the text's tokens."""
    q = linear.project(x_BTD, p["q"]) + p["q_bias"]
    k = linear.project(text_BSD, p["k"]) + p["k_bias"]
    v = linear.project(text_BSD, p["v"]) + p["v_bias"]
    h = attention.attend(q, k, v, here, there, causal=False, implementation=cfg.compute.attention)
    return attention.project_out(p, h)


def block(cfg: PixArtConfig, p, x_BTD, _, time_B6D, text_BSD, here: Where, there: Where, *, train: bool):
    six = (p["modulation"] + time_B6D)[:, :, None]
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (six[:, n] for n in range(6))
    h = attention.qkv(p["attn"], dit.modulate(x_BTD, shift, scale))
    h = attention.attend(*h, here, here, causal=False, implementation=cfg.compute.attention)
    x_BTD = constrain(x_BTD + gate * attention.project_out(p["attn"], h), "batch", "seq", "embed")
    # No norm before it, as published.
    x_BTD = constrain(x_BTD + attend_text(cfg, p["text_attn"], x_BTD, text_BSD, here, there), "batch", "seq", "embed")
    h = feedforward.gelu_mlp(p["mlp"], dit.modulate(x_BTD, mlp_shift, mlp_scale))
    return constrain(x_BTD + mlp_gate * h, "batch", "seq", "embed"), None


def positions(cfg: PixArtConfig) -> np.ndarray:
    """(T, D) float32, DiT's, divided by `position_scale`."""
    return dit.positions(cfg, cfg.position_scale)


def enter(cfg: PixArtConfig, p, batch, *, rng, train: bool, cache) -> Entry:
    """batch: image (B, H, W, C) with noise, timestep (B,), text_states (B, S, E), segment_ids (B, S), 0 being padding;
    hidden (B,) bool hides texts."""
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
    """As `enter`, but of tokens (B, S) int instead of states."""
    states = clip.text_states(cfg.text, p["text"], batch, causal=False)
    return enter(cfg, p, batch | {"text_states": states}, rng=rng, train=train, cache=cache)


def leave(cfg: PixArtConfig, p, entry: Entry, x_BTD, ys, batch, *, train: bool) -> Out:
    """The noise in each image, (B, H, W, C), and with learn_sigma as many channels more."""
    shift, scale = ((p["modulation"] + entry.kept[:, None])[:, n, None] for n in range(2))
    flat = linear.linear(p["head"], dit.modulate(x_BTD, shift, scale))
    return Out(prenorm.unpatchify(flat, cfg.image_shape, cfg.patch_size))


# The paper's model at its three resolutions' latents; Sigma's 1,024-pixel model (arXiv:2403.04692) has no size embedding.
PRESETS = {
    "pixart-xl/2-256": PixArtConfig(image_shape=(32, 32, 4)),
    "pixart-xl/2-512": PixArtConfig(),
    "pixart-sigma-xl/2-1024": PixArtConfig(image_shape=(128, 128, 4), position_scale=2.0),
}
