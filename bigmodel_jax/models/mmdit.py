"""MM-DiT, the network of Stable Diffusion 3: image and text in one attention.

Esser et al., arXiv:2403.03206, section 4. Patches and text tokens have separate weights, attend to
each other as one sequence, and both pass through all layers. The timestep and a pooled vector of
the text shift, scale and gate both streams, as in DiT.

Shapes: B batch, H height, W width, C channels, T patches, S text tokens, P patch side, D embed, F
mlp, E text, L layers.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import params
from bigmodel_jax.core.params import normal
from bigmodel_jax.core.ranges import Count, Depth, Share
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
class MMDiTConfig(ModelConfig):
    """The text-to-image network of Stable Diffusion 3 (Esser et al., arXiv:2403.03206).

    The reference implementation is diffusers' `SD3Transformer2DModel`. The defaults are those of
    Stable Diffusion 3 medium on the 128 x 128 latents of 1,024-pixel pictures.
    """

    image_shape: tuple[Count, Count, Count] = (128, 128, 16)  # height, width and channels of the latents
    patch_size: Count = 2  # side of a patch, in latents' pixels
    num_layers: Depth = 24  # number of blocks
    embed_dim: Count = 1536  # width of the residual stream
    num_heads: Count = 24  # attention heads of a layer
    text_dim: Count = 4096
    "width of the text's states"
    pooled_dim: Count = 2048
    "width of the vector that stands for the whole text"
    qk_norm: bool = False  # whether each head's queries and keys have an RMSNorm, as in Stable Diffusion 3.5
    position_grid: Count = 192
    """patches along a side of the largest picture; this model's positions are those of its middle
    part"""
    text_dropout: Share = 0.1
    """share of rows whose text training hides, so that guidance has an unconditional model
    (arXiv:2207.12598)"""
    zero_init: bool = True
    "gates and output start at zero"
    compute: Compute = Compute()

    SIZES: ClassVar[tuple] = dit.SIZES

    @property
    def mlp_dim(self) -> int:
        return 4 * self.embed_dim

    @property
    def out_channels(self) -> int:
        return self.image_shape[2]

    @property
    def last_layer(self) -> int:
        """The index of the layer after the stack, whose text output is not used."""
        return self.num_layers - 1

    def inputs(self):
        return {"image": self.image_shape, "text_states": None, "text_pooled": (self.pooled_dim,), "timestep": ()}

    def make(self) -> Model:
        return Model(spec(self), parts_of(self, enter, block, leave))

    def validate(self, parallel) -> None:
        super().validate(parallel)
        if self.num_layers < 2:
            raise ValueError("model.num_layers = 1; an MM-DiT has 2 or more, since the last layer has no text output")
        rows = max(self.image_shape[:2]) // self.patch_size
        if rows > self.position_grid:
            raise ValueError(
                f"model.position_grid = {self.position_grid}; model.image_shape = {self.image_shape} has {rows} patches a "
                "side, and it must be at least as many"
            )

    @classmethod
    def tiny(cls) -> "MMDiTConfig":
        sizes = {"num_layers": 3, "embed_dim": 32, "num_heads": 4, "text_dim": 24, "pooled_dim": 20}
        return cls((8, 8, 1), **sizes, position_grid=6, qk_norm=True, zero_init=False)


@dataclasses.dataclass(frozen=True)
class MMDiTTextConfig(MMDiTConfig):
    """MM-DiT with a text tower that trains along with it, for batches that hold tokens.

    The mean of the tower's states is the pooled vector. The other fields are those of
    `MMDiTConfig`.
    """

    text_dim: Count = 512
    pooled_dim: Count = 512
    text: TextTower = TextTower()

    def inputs(self):
        return {"image": self.image_shape, "tokens": None, "timestep": ()}

    def make(self) -> Model:
        return Model(spec(self) | {"text": clip.text_spec(self.text)}, parts_of(self, enter_tokens, block, leave))

    def validate(self, parallel) -> None:
        super().validate(parallel)
        for name in ("text_dim", "pooled_dim"):
            if getattr(self, name) != self.text.embed_dim:
                raise ValueError(
                    f"model.{name} = {getattr(self, name)} is not model.text.embed_dim = {self.text.embed_dim}"
                )

    @classmethod
    def tiny(cls) -> "MMDiTTextConfig":
        tower = TextTower(num_layers=1, embed_dim=24, num_heads=4, mlp_dim=48, vocab_size=64, max_seq_len=16)
        return dataclasses.replace(cls(), **vars(MMDiTConfig.tiny()) | {"pooled_dim": 24}, text=tower)


def stream_spec(cfg: MMDiTConfig, *, last: bool) -> params.Tree:
    """One stream of one layer. The last layer's text stream gives keys and values alone."""
    D, H, F = cfg.embed_dim, cfg.num_heads, cfg.mlp_dim
    init, out = xavier(D, D), xavier(D, D)
    attn = attention.spec(D, H, H, D // H, init=init, out_init=out, bias=True, qk_norm=cfg.qk_norm)
    if last:
        return {
            "modulation": dit.modulation_spec(cfg, 2),
            "attn": {name: p for name, p in attn.items() if name not in ("o", "o_bias")},
        }
    mlp = feedforward.mlp_spec(D, F, init=xavier(D, F), out_init=xavier(F, D))
    return {"modulation": dit.modulation_spec(cfg, 6), "attn": attn, "mlp": mlp}


def block_spec(cfg: MMDiTConfig, *, last: bool = False) -> params.Tree:
    """One layer: the image stream and the text stream."""
    return {"image": stream_spec(cfg, last=False), "text": stream_spec(cfg, last=last)}


def spec(cfg: MMDiTConfig) -> params.Tree:
    """Patches, timestep and text MLPs, stacked layers, the last layer, and the head."""
    D, P, C = cfg.embed_dim, cfg.patch_size, cfg.image_shape[2]

    return {
        "patches": prenorm.patch_spec(P, C, D, init=xavier(P * P * C, D)),
        "time": dit.two_maps_spec(dit.FREQUENCIES, D, None),
        "pooled": dit.two_maps_spec(cfg.pooled_dim, D),
        "text_projection": linear.linear_spec(cfg.text_dim, D, axes=(None, "embed"), init=normal(0.02), bias=True),
        "layers": params.stack(block_spec(cfg), cfg.num_layers - 1),
        "last": params.stack(block_spec(cfg, last=True), 1, axis=None),
        "modulation": dit.modulation_spec(cfg, 2),
        "head": dit.head_spec(cfg),
    }


def positions(cfg: MMDiTConfig) -> np.ndarray:
    """Returns (grid * grid, D) float32: positions of the largest picture's patches.

    Half of a vector is for the column, half for the row.
    """
    grid, half = cfg.position_grid, cfg.embed_dim // 2
    row, column = np.divmod(np.arange(grid * grid), grid)
    unit = grid / (cfg.image_shape[0] // cfg.patch_size)
    return np.concatenate([dit.sines(column / unit, half), dit.sines(row / unit, half)], axis=1).astype(np.float32)


def middle(cfg: MMDiTConfig) -> np.ndarray:
    """Returns (T, D) float32: the positions of a picture in the middle of the largest one."""
    grid, (rows, columns) = cfg.position_grid, (n // cfg.patch_size for n in cfg.image_shape[:2])
    top, left = (grid - rows) // 2, (grid - columns) // 2
    table = positions(cfg).reshape(grid, grid, cfg.embed_dim)
    return table[top : top + rows, left : left + columns].reshape(rows * columns, cfg.embed_dim)


def enter(cfg: MMDiTConfig, p, batch, *, rng, train: bool, cache) -> Entry:
    """Joins patches and text tokens into one sequence (B, T + S, D).

    batch: image (B, H, W, C) with noise, timestep (B,), text_states (B, S, E), text_pooled (B,
    pooled_dim), segment_ids (B, S), 0 being padding; optionally hidden (B,) bool, the rows whose
    text is hidden.
    """
    hidden = dit.hidden_rows(batch, rng, cfg.text_dropout)
    image_BTD = prenorm.embed_patches(p["patches"], batch["image"])
    image_BTD = image_BTD + jnp.asarray(middle(cfg), image_BTD.dtype)
    # The states and the vector of a hidden text are zeros before their projections.
    states = jnp.where(hidden[:, None, None], 0, batch["text_states"]).astype(image_BTD.dtype)
    pooled = jnp.where(hidden[:, None], 0, batch["text_pooled"]).astype(image_BTD.dtype)
    text_BSD = linear.linear(p["text_projection"], states)
    pooled = linear.linear(p["pooled"]["down"], jax.nn.silu(linear.linear(p["pooled"]["up"], pooled)))
    condition_BD = dit.embed_time(p["time"], batch["timestep"]) + pooled
    there = batch.get("segment_ids", jnp.ones(text_BSD.shape[:2], jnp.int32))
    # All tokens but padding belong to segment 1, the picture's.
    seen = jnp.concatenate([jnp.ones(image_BTD.shape[:2], jnp.int32), (there > 0).astype(jnp.int32)], axis=1)
    x = constrain(jnp.concatenate([image_BTD, text_BSD], axis=1), "batch", "seq", "embed")
    return Entry(x, shared=(jax.nn.silu(condition_BD), prenorm.places(x, seen)))


def enter_tokens(cfg: MMDiTTextConfig, p, batch, *, rng, train: bool, cache) -> Entry:
    """As `enter`, for a batch with tokens (B, S) int instead of text_states and text_pooled."""
    states = clip.text_states(cfg.text, p["text"], batch, causal=False)
    share = (batch.get("segment_ids", jnp.ones(states.shape[:2])) > 0).astype(states.dtype)[..., None]
    pooled = jnp.sum(states * share, axis=1) / jnp.maximum(jnp.sum(share, axis=1), 1)
    told = {"text_states": states, "text_pooled": pooled}
    return enter(cfg, p, batch | told, rng=rng, train=train, cache=cache)


def block(cfg: MMDiTConfig, p, x, _, condition_BD, where: Where, *, train: bool):
    """One layer: x (B, T + S, D) -> (B, T + S, D), patches first.

    condition_BD: the conditioning vector, after its SiLU.
    """
    num = prenorm.num_patches(cfg.image_shape, cfg.patch_size)
    streams = {"image": x[:, :num], "text": x[:, num:]}
    heads, gates = {}, {}
    for name, stream in streams.items():
        vectors = dit.modulations(p[name]["modulation"], condition_BD)
        # The last layer's text stream has only two vectors. Published files store the scale before
        # the shift.
        shift, scale, *gates[name] = vectors if len(vectors) > 2 else vectors[::-1]
        heads[name] = attention.qkv(p[name]["attn"], dit.modulate(stream, shift, scale))
    q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip(heads["image"], heads["text"], strict=True))
    h = attention.attend(q, k, v, where, where, causal=False, implementation=cfg.compute.attention)
    attended = {"image": h[:, :num], "text": h[:, num:]}
    out = [finish(p[n], streams[n], attended[n], gates[n]) if gates[n] else streams[n] for n in streams]
    return constrain(jnp.concatenate(out, axis=1), "batch", "seq", "embed"), None


def finish(p, x, attended, gates) -> jax.Array:
    """Returns (B, n, D): a stream's states after its attention's output and its MLP are added."""
    gate, shift, scale, mlp_gate = gates
    x = x + gate * attention.project_out(p["attn"], attended)
    return x + mlp_gate * feedforward.gelu_mlp(p["mlp"], dit.modulate(x, shift, scale))


def leave(cfg: MMDiTConfig, p, entry: Entry, x, ys, batch, *, train: bool) -> Out:
    """The predicted velocity of each image, (B, H, W, C)."""
    x, _ = block(cfg, jax.tree.map(lambda leaf: leaf[0], p["last"]), x, None, *entry.shared, train=train)
    image_BTD = x[:, : prenorm.num_patches(cfg.image_shape, cfg.patch_size)]
    scale, shift = dit.modulations(p["modulation"], entry.shared[0])
    flat = linear.linear(p["head"], dit.modulate(image_BTD, shift, scale))
    return Out(prenorm.unpatchify(flat, cfg.image_shape, cfg.patch_size))


PRESETS = {
    "sd3-medium": MMDiTConfig(),
    "sd3.5-large": MMDiTConfig(num_layers=38, embed_dim=2432, num_heads=38, qk_norm=True),
}
