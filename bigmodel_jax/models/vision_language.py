"""Vision-language models: a vision tower, a connector, and a decoder that reads image tokens.

One form serves three families. LLaVA (arXiv:2304.08485, 2310.03744) has CLIP's tower, read before
its last layer, and an MLP. PaliGemma (arXiv:2407.07726) has SigLIP's tower, a linear map, and
Gemma, with bidirectional attention in the prompt. Idefics3 and SmolVLM (arXiv:2408.12637,
2504.05299) have SigLIP's tower on several tiles of an image, and make one token of each square of
patches.

The decoder's parameters have the same names as without a tower, so that its checkpoints, adapters
and sharding layouts apply here.

Shapes: B batch, N images per row, H height, W width, C channels, P patches, F tokens per image, T
tokens, D embed.
"""

import dataclasses
import functools
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import normal
from bigmodel_jax.core.ranges import Count, CountOrZero, NonNegative
from bigmodel_jax.core.sharding import ParallelConfig, constrain
from bigmodel_jax.models import clip, compute, siglip
from bigmodel_jax.models.base import Entry, Model, ModelConfig
from bigmodel_jax.models.clip import VisionTower
from bigmodel_jax.models.gemma import GemmaConfig
from bigmodel_jax.models.llama import LlamaConfig
from bigmodel_jax.nn import linear, norm
from bigmodel_jax.nn.attention import attention

SPECS = {"clip": clip.vision_spec, "siglip": siglip.vision_spec}
STATES = {"clip": clip.image_states, "siglip": siglip.image_states}


class Depths:
    """Checks `feature_layer`, `shuffle`, `class_token` and `prefix_mask` against the other fields.

    feature_layer must be one of the tower's layers, and squares of patches must fill its grid. A
    prefix mask needs attention without a window and sequences that are not sharded.
    """

    def wrong(self, cfg: "VisionLanguageConfig", prefix: str, parallel: ParallelConfig) -> str:
        layers, (rows, columns) = cfg.vision.num_layers, cfg.grid
        if not -layers <= cfg.feature_layer <= -1:
            return (
                f"{prefix}feature_layer = {cfg.feature_layer}; it must be from -{layers} to -1, the tower's last layer"
            )
        if rows % cfg.shuffle or columns % cfg.shuffle:
            return (
                f"{prefix}shuffle = {cfg.shuffle} does not divide the grid of {rows} x {columns} patches of "
                f"{prefix}vision; allowed: common divisors of both"
            )
        if cfg.class_token and (cfg.tower != "clip" or cfg.shuffle > 1):
            return f"{prefix}class_token = True; it needs {prefix}tower = 'clip' and {prefix}shuffle = 1"
        return self.wrong_prefix(cfg, prefix, parallel) if cfg.prefix_mask else ""

    def wrong_prefix(self, cfg: "VisionLanguageConfig", prefix: str, parallel: ParallelConfig) -> str:
        """What prevents a prefix mask: kernels and rings compare columns, and a window compares
        positions.
        """
        attention, inside = cfg.text.compute.attention, ("auto", "plain", "chunked")
        if attention not in inside:
            return (
                f"{prefix}text.compute.attention = {attention!r} with {prefix}prefix_mask; allowed: {', '.join(inside)}"
            )
        if any(cfg.text.windows()):
            return f"{prefix}text.window = {cfg.text.window} with {prefix}prefix_mask; it must be 0"
        return f"parallel.seq = {parallel.seq} with {prefix}prefix_mask; it must be 1" if parallel.seq > 1 else ""


@dataclasses.dataclass(frozen=True)
class VisionLanguageConfig(ModelConfig):
    """A decoder that reads images. The subclasses have the defaults of the published families.

    vision, text: the tower and the decoder. In a row, each token `image_token_id` is replaced by
    one of the image's states. The id may lie beyond the decoder's vocabulary, since its embedding
    is not read.
    """

    vision: VisionTower = VisionTower()
    text: LlamaConfig | GemmaConfig = LlamaConfig()
    tower: Literal["clip", "siglip"] = "clip"  # architecture of the vision tower
    feature_layer: int = -1
    """the layer of the tower whose states are read: -1 = the last layer (for SigLIP after its
    norm), -2 = the one before"""
    class_token: bool = False  # whether the state of CLIP's class token is read, too
    connector: Literal["linear", "mlp"] = "mlp"  # the map from the tower's states to the decoder's embeddings
    connector_bias: bool = True  # whether the connector has biases
    shuffle: Count = 1  # side of the square of patches that becomes one token (arXiv:2408.12637, section 3.1)
    prefix_mask: bool = False  # whether the tokens marked in batch["prefix"] see each other in both directions
    image_token_id: CountOrZero = 0  # id of the tokens that image states replace
    init_std: NonNegative = 0.02  # standard deviation of the connector's initial weights

    SIZES: ClassVar[tuple] = (Depths(),)

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def max_seq_len(self) -> int:
        return self.text.max_seq_len

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width, _ = self.vision.image_shape
        return height // self.vision.patch_size, width // self.vision.patch_size

    @property
    def image_tokens(self) -> int:
        """The number of tokens that stand for one image, or for one tile of an image."""
        rows, columns = self.grid
        return rows * columns // self.shuffle**2 + self.class_token

    @property
    def read_layers(self) -> int:
        """The number of the tower's layers that are computed."""
        return self.vision.num_layers + 1 + self.feature_layer

    def inputs(self):
        return {"image": None, "tokens": None} | ({"prefix": None} if self.prefix_mask else {})

    def windows(self) -> tuple[int, ...]:
        return self.text.windows()

    def no_mup(self, depth):
        return "has two stacks of different widths"

    def make(self) -> Model:
        text = self.decoder().make()
        parts = dataclasses.replace(text.parts, enter=functools.partial(enter, self, text.parts.enter))
        return text._replace(spec=spec(self, text.spec), apply=parts)

    def decoder(self) -> LlamaConfig | GemmaConfig:
        """The decoder's config; a prefix mask excludes kernels from "auto" attention."""
        if not self.prefix_mask or self.text.compute.attention != "auto":
            return self.text
        long = self.max_seq_len >= attention.CHUNKED_FROM
        return compute.changed(self.text, attention="chunked" if long else "plain")


def spec(cfg: VisionLanguageConfig, text: params.Tree) -> params.Tree:
    """The decoder's parameters, "vision" and "connector"; "unread" holds the tower's unused parts.

    The parts in "unread" are constants.
    """
    whole = SPECS[cfg.tower](cfg.vision)
    whole.pop("pool", None)  # SigLIP's pooling, since the decoder reads all patches
    read = dataclasses.replace(cfg.vision, num_layers=cfg.read_layers)
    vision, unread = whole | {"layers": SPECS[cfg.tower](read)["layers"]}, {}
    if left := cfg.vision.num_layers - cfg.read_layers:
        rest = dataclasses.replace(cfg.vision, num_layers=left)
        unread["layers"] = SPECS[cfg.tower](rest)["layers"]
    if not normed(cfg):
        unread["norm"] = vision.pop("norm")
    tree = text | {"vision": vision, "connector": connector_spec(cfg)}
    return tree | ({"unread": params.map_spec(untrained, unread)} if unread else {})


def untrained(p: params.Param) -> params.Param:
    """The parameter as a constant."""
    return dataclasses.replace(p, kind="constant", decay=False)


def normed(cfg: VisionLanguageConfig) -> bool:
    """Whether the states are read after the tower's last norm."""
    return cfg.tower == "siglip" and cfg.feature_layer == -1


def connector_spec(cfg: VisionLanguageConfig) -> params.Tree:
    """up (shuffle^2 * tower's width, D) and, for an MLP, down (D, D)."""
    width, D = cfg.vision.embed_dim * cfg.shuffle**2, cfg.text.embed_dim
    options = {"axes": (None, "embed"), "init": normal(cfg.init_std), "bias": cfg.connector_bias}
    tree = {"up": linear.linear_spec(width, D, **options)}
    return tree | ({"down": linear.linear_spec(D, D, **options)} if cfg.connector == "mlp" else {})


def shuffled(x_BPD: jax.Array, grid: tuple[int, int], side: int) -> jax.Array:
    """Maps (B, P, D) -> (B, P / side^2, side^2 D): each square of patches as one vector.

    The patches P are in row-by-row order.
    """
    B, _, D = x_BPD.shape
    rows, columns = grid[0] // side, grid[1] // side
    squares = x_BPD.reshape(B, rows, side, columns, side, D).swapaxes(2, 3)
    return squares.reshape(B, rows * columns, side * side * D)


def image_embeddings(cfg: VisionLanguageConfig, p: params.Tree, image: jax.Array) -> jax.Array:
    """Returns (B, N F, D): the decoder's embeddings of images (B, N, H, W, C) or (B, H, W, C)."""
    B = image.shape[0]
    tower, kernel = p["vision"], p["vision"]["patches"]["kernel"]
    flat = image.reshape(-1, *image.shape[-3:]).astype(kernel.dtype)
    x = STATES[cfg.tower](cfg.vision, tower, flat)
    if normed(cfg):
        x = norm.layer(tower["norm"], x, eps=cfg.vision.norm_eps)
    if cfg.tower == "clip" and not cfg.class_token:
        x = x[:, 1:]
    x = linear.linear(p["connector"]["up"], shuffled(x, cfg.grid, cfg.shuffle) if cfg.shuffle > 1 else x)
    if cfg.connector == "mlp":
        x = linear.linear(p["connector"]["down"], jax.nn.gelu(x, approximate=False))
    return x.reshape(B, -1, x.shape[-1])


def enter(cfg: VisionLanguageConfig, text_enter, p: params.Tree, batch: dict, **options) -> Entry:
    """The decoder's entry, with the image's states in place of its image tokens.

    batch: the decoder's arrays, image (B, H, W, C) or (B, N, H, W, C), and with `prefix_mask`
    prefix (B, T), 1 for a token of the prefix. The n-th image token of a row takes the n-th state
    of the row's images. A call without images reads text alone.
    """
    tokens = batch["tokens"]
    here = tokens == cfg.image_token_id
    entry = text_enter(p, batch | {"tokens": jnp.where(here, 0, tokens)}, **options)
    if "image" not in batch:
        return entry
    states = image_embeddings(cfg, p, batch["image"]).astype(entry.x.dtype)
    nth = jnp.clip(jnp.cumsum(here, axis=1) - 1, 0, states.shape[1] - 1)
    taken = jnp.take_along_axis(states, nth[..., None], axis=1)
    entry = entry._replace(x=constrain(jnp.where(here[..., None], taken, entry.x), "batch", "seq", "embed"))
    return with_prefix(entry, batch) if cfg.prefix_mask else entry


def with_prefix(entry: Entry, batch: dict) -> Entry:
    """The entry with a prefix mask: all prefix tokens get position 0 in the mask.

    They thus see each other, and all later tokens see them. Rotary angles are made of the real
    positions before. If a call fills a cache and has no batch["prefix"], all its tokens belong to
    the prefix. Raises ValueError if there is neither a cache nor a prefix.
    """
    q_where, k_where, *rest = entry.shared
    cache, prefix = entry.kept, batch.get("prefix")
    if prefix is None and cache is None:
        raise ValueError(
            f"batch has {', '.join(batch)}, but no prefix: model.prefix_mask needs data that marks the prompt"
        )
    first = jnp.where(True if prefix is None else prefix > 0, 0, q_where.positions)
    q_where = q_where._replace(positions=first)
    if cache is None:
        k_where = k_where._replace(positions=first)
    else:
        positions = jax.lax.dynamic_update_slice(cache.positions, first, (0, cache.index))
        cache, k_where = cache.replace(positions=positions), k_where._replace(positions=positions)
    return entry._replace(shared=(q_where, k_where, *rest), kept=cache)
