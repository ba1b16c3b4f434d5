"""DETR: a ResNet, a Transformer over its last feature map, and queries that become boxes.

Carion et al., arXiv:2005.12872. Position vectors are added to the queries and keys of attention,
and not to its values. Each object query gives a box and logits over the classes, the last class
being "no object". In training the heads also read the output of every earlier decoder layer
("auxiliary" outputs).

Published models have `queries` "learned": a table of position vectors, and object queries that
start as zeros. With "places", there is one query per place of the feature map. It starts as the
encoder's output at that place, and has that place's position vector. It predicts a box relative to
the place's centre. The heads also read these starting values. This is the first stage of two-stage
Deformable DETR (Zhu et al., arXiv:2010.04159, section 4.2) without its selection of places; it
trains on a small set of pictures within minutes.

Shapes: B batch, H height and W width of the map, T = H W places, Q queries, D embed, L decoder
layers, K classes.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, normal
from bigmodel_jax.core.ranges import Blocks, Count, Depth, NonNegative, ShareBelowOne
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models.base import POST_NORM, Model, ModelConfig, Out
from bigmodel_jax.models.compute import Compute
from bigmodel_jax.models.encoder_decoder import project
from bigmodel_jax.models.flax_module import from_linen
from bigmodel_jax.models.prenorm import places, xavier
from bigmodel_jax.models.resnet import ResNetConfig, Trunk
from bigmodel_jax.models.sizes import Cut, Divides, Multiple, SameLength
from bigmodel_jax.nn import feedforward, linear, norm, stack
from bigmodel_jax.nn.activations import ACTIVATIONS, Activation
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.dropout import dropout

EPS = 1e-5  # epsilon of every LayerNorm: torch's default
TEMPERATURE = 10_000.0  # base of the wavelengths of the position vectors
BOX_LAYERS = 3  # linear layers of the box head
FROZEN = ("scale", "bias")  # parameters of a batch norm that a frozen one does not train


@dataclasses.dataclass(frozen=True)
class DetrConfig(ModelConfig):
    """An object detector (Carion et al., arXiv:2005.12872).

    The reference implementation is transformers' `DetrForObjectDetection`. The defaults are those
    of DETR with ResNet-50 for COCO, whose category ids go up to 90.
    """

    image_shape: tuple[Count, Count, Count] = (800, 800, 3)  # height, width and channels
    num_classes: Count = 91  # without "no object"
    num_queries: Count = 100
    """object queries of an image; with queries = 'places' it must be the number of places of the
    feature map"""
    depths: tuple[Blocks, ...] = (3, 4, 6, 3)  # blocks of the ResNet's stages
    channels: tuple[Count, ...] = (256, 512, 1024, 2048)  # output channels of the ResNet's stages
    stem_channels: Count = 64  # output channels of the ResNet's first convolution
    block: Literal["basic", "bottleneck"] = "bottleneck"  # the ResNet's block: 3x3 and 3x3, or 1x1, 3x3 and 1x1
    stem: Literal["imagenet", "cifar"] = "imagenet"  # what precedes the ResNet's stages, as in ResNetConfig
    batch_norm: Literal["frozen", "trained"] = "frozen"
    """frozen: statistics, scales and biases of the ResNet never change (published models); trained:
    they train"""
    embed_dim: Count = 256  # width of the residual stream
    num_heads: Count = 8  # attention heads of a layer
    mlp_dim: Count = 2048  # hidden width of the feed-forward layer
    num_layers: Depth = 6  # layers of the encoder
    num_decoder_layers: Depth = 6  # layers of the decoder
    queries: Literal["learned", "places"] = "learned"  # learned: a table; places: one query per place of the map
    activation: Activation = "relu"  # activation of the feed-forward layer
    dropout: ShareBelowOne = 0.1  # dropout rate of what each sublayer adds to the residual
    init_std: NonNegative = 0.02  # standard deviation of the initial weights
    compute: Compute = Compute()

    SIZES: ClassVar[tuple] = (
        SameLength("depths", "channels"),
        Divides("num_heads", "embed_dim"),
        Multiple("embed_dim", 4, "half of it are sines of the row, half of the column"),
        *(Cut(n, axis) for n, axis in (("num_heads", "heads"), ("mlp_dim", "mlp"))),
        *(Cut(n, "mlp") for n in ("stem_channels", "channels")),
    )

    def inputs(self):
        return {"image": self.image_shape}

    def trunk(self) -> ResNetConfig:
        """The config of the ResNet."""
        names = ("image_shape", "depths", "channels", "stem_channels", "block", "stem")
        return ResNetConfig(**{name: getattr(self, name) for name in names})

    def make(self) -> Model:
        resnet = from_linen(Trunk(self.trunk()), {"image": jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)})
        tree = spec(self, resnet.spec)

        def init(rng: jax.Array) -> params.Tree:
            first, second = jax.random.split(rng)
            rest = {name: part for name, part in tree.items() if name != "backbone"}
            return {"backbone": resnet.init(first)} | params.init(rest, second)

        def apply(p, batch, *, rng=None, train=False, cache=None) -> Out:
            moving = train and self.batch_norm == "trained"
            found = resnet.apply(p["backbone"], {"image": batch["image"]}, train=moving)
            updates = {f"backbone/{name}": value for name, value in found.updates.items()}
            return Out(detect(self, p, found.value, rng if train else None, train), updates if moving else {})

        return Model(tree, apply, init)

    def validate(self, parallel) -> None:
        super().validate(parallel)
        self.trunk().validate(parallel)
        of_map = np.prod(map_shape(self))
        if self.queries == "places" and self.num_queries != of_map:
            raise ValueError(
                f"model.num_queries = {self.num_queries}: with model.queries = 'places' it must be {of_map}, one for each "
                f"place of the {' x '.join(map(str, map_shape(self)))} map"
            )

    def no_mup(self, depth):
        return "has a ResNet of Flax's modules, whose initial values are its own" if not depth else POST_NORM

    @classmethod
    def tiny(cls) -> "DetrConfig":
        return cls(
            image_shape=(32, 32, 1),
            num_classes=11,
            num_queries=16,
            queries="places",
            depths=(1, 1),
            channels=(8, 16),
            stem_channels=8,
            block="basic",
            batch_norm="trained",
            embed_dim=16,
            num_heads=2,
            mlp_dim=32,
            num_layers=1,
            num_decoder_layers=2,
            dropout=0.0,
        )


def map_shape(cfg: DetrConfig) -> tuple[int, int]:
    """Returns (height, width) of the last feature map.

    The imagenet stem divides the sides by 4 and each stage after the first by 2, rounding up.
    """
    halvings = len(cfg.depths) - 1 + (2 if cfg.stem == "imagenet" else 0)
    sides = list(cfg.image_shape[:2])
    for _ in range(halvings):
        sides = [-(-side // 2) for side in sides]
    return tuple(sides)


def block_spec(cfg: DetrConfig, cross: bool) -> params.Tree:
    """One post-norm layer: self-attention, with `cross` also cross-attention, and an MLP."""
    D, H, F = cfg.embed_dim, cfg.num_heads, cfg.mlp_dim
    square = xavier(D, D)
    attend = attention.spec(D, H, H, D // H, init=square, out_init=square, bias=True)
    tree = {"attn": attend, "attn_norm": norm.layer_spec(D)}
    if cross:
        tree |= {"cross": attend, "cross_norm": norm.layer_spec(D)}
    return tree | {
        "mlp": feedforward.mlp_spec(D, F, init=xavier(D, F), out_init=xavier(F, D)),
        "mlp_norm": norm.layer_spec(D),
    }


def spec(cfg: DetrConfig, backbone: params.Tree) -> params.Tree:
    """The ResNet "backbone", projection, encoder, decoder, heads, and learned queries (Q, D)."""
    D, sizes = cfg.embed_dim, (cfg.embed_dim,) * BOX_LAYERS
    frozen = cfg.batch_norm == "frozen"
    tree = {
        "backbone": params.from_paths({path: _norm(path, p, frozen) for path, p in params.paths(backbone).items()}),
        "project": linear.linear_spec(
            cfg.channels[-1], D, axes=("mlp", "embed"), init=xavier(cfg.channels[-1], D), bias=True
        ),
        "encoder": params.stack(block_spec(cfg, cross=False), cfg.num_layers),
        "decoder": params.stack(block_spec(cfg, cross=True), cfg.num_decoder_layers),
        "decoder_norm": norm.layer_spec(D),
        "classes": linear.linear_spec(
            D, cfg.num_classes + 1, axes=("embed", None), init=xavier(D, cfg.num_classes), bias=True
        ),
        "box": {
            f"layer{n}": linear.linear_spec(size, out, axes=("embed", None), init=xavier(size, out), bias=True)
            for n, (size, out) in enumerate(zip(sizes, (*sizes[1:], 4), strict=True))
        },
    }
    if cfg.queries == "learned":
        tree["queries"] = Param((cfg.num_queries, D), (None, "embed"), normal(1.0))
    return tree


def _norm(path: str, p: Param, frozen: bool) -> Param:
    """A parameter of the backbone. The scale and bias of a frozen batch norm become statistics."""
    place, _, name = path.rpartition("/")
    if not (frozen and place.endswith("norm") and name in FROZEN):
        return p
    return dataclasses.replace(p, trainable=False, kind="statistic", decay=False)


def sines(shape: tuple[int, int], dim: int) -> np.ndarray:
    """Position vectors (T, D) float32 of a map's places: half for the row, half for the column.

    Sines and cosines are interleaved. Rows and columns count from 1 and are scaled to end at 2 pi.
    """
    half = dim // 2
    rate = TEMPERATURE ** (2 * (np.arange(half) // 2) / half)
    parts = []
    for side in shape:
        angle = np.arange(1, side + 1) / (side + 1e-6) * 2 * np.pi
        angle = (angle[:, None] / rate).astype(np.float32)
        pairs = np.stack([np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])], axis=2)
        parts.append(pairs.reshape(side, half))
    rows = np.broadcast_to(parts[0][:, None], (*shape, half))
    columns = np.broadcast_to(parts[1][None], (*shape, half))
    return np.concatenate([rows, columns], axis=2).reshape(-1, dim).astype(np.float32)


def centres(shape: tuple[int, int]) -> np.ndarray:
    """Logits (T, 4) float32 of the places' centres: x, y, and 0 for width and height."""
    rows, columns = ((np.arange(side) + 0.5) / side for side in shape)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    found = np.stack([x, y], axis=2).reshape(-1, 2)
    return np.pad(np.log(found / (1 - found)), ((0, 0), (0, 2))).astype(np.float32)


def attended(cfg: DetrConfig, p, x, x_at, source, source_at, where, source_where):
    """Attention of x (B, T, D) to source (B, S, D), (B, T, D).

    x_at, source_at: position vectors, of the shapes of x and source, added to queries and keys.
    """
    q, k, v = project(p, "q", x + x_at), project(p, "k", source + source_at), project(p, "v", source)
    h = attention.attend(q, k, v, where, source_where, causal=False, implementation=cfg.compute.attention)
    return attention.project_out(p, h)


def block(cfg: DetrConfig, p, x, rng, x_at, where, memory=None, memory_at=None, memory_where=None):
    """One layer of the encoder or, with `memory`, of the decoder: (B, T, D) -> (B, T, D)."""
    rngs = iter([None] * 3 if rng is None else jax.random.split(rng, 3))

    def add(x, y, name):
        return constrain(norm.layer(p[name], x + dropout(cfg.dropout, y, next(rngs)), eps=EPS), "batch", "seq", "embed")

    x = add(x, attended(cfg, p["attn"], x, x_at, x, x_at, where, where), "attn_norm")
    if "cross" in p:
        x = add(x, attended(cfg, p["cross"], x, x_at, memory, memory_at, where, memory_where), "cross_norm")
    return add(x, feedforward.mlp(p["mlp"], x, ACTIVATIONS[cfg.activation]), "mlp_norm")


def run(cfg: DetrConfig, layers, x, rng, *shared):
    """Returns (output of the last layer (B, T, D), outputs of all layers (L, B, T, D))."""
    rngs = None if rng is None else jax.random.split(rng, stack.num_layers(layers))

    def body(layer, x, rng, *shared):
        x = block(cfg, layer, x, rng, *shared)
        return x, x

    return stack.run(body, layers, x, rngs, shared=shared, remat=cfg.compute.remat, unroll=cfg.compute.unroll)


def detect(cfg: DetrConfig, p, features_BHWC: jax.Array, rng, train: bool) -> dict[str, jax.Array]:
    """Returns {"logits": (B, Q, K + 1), "boxes": (B, Q, 4)}.

    boxes: centre x and y, width and height in 0 .. 1. In training also "layer_logits" and
    "layer_boxes", (B, L - 1, Q, ...), of the earlier layers. With `queries` "places", these have L
    entries, and the first one is for the encoder's output.
    """
    B, H, W, _ = features_BHWC.shape
    encoder_rng, decoder_rng = (None, None) if rng is None else jax.random.split(rng)
    x = constrain(linear.linear(p["project"], features_BHWC).reshape(B, H * W, -1), "batch", "seq", "embed")
    at = jnp.broadcast_to(jnp.asarray(sines((H, W), cfg.embed_dim), x.dtype), x.shape)
    where = places(x)
    memory, _ = run(cfg, p["encoder"], x, encoder_rng, at, where)
    if cfg.queries == "places":
        x, x_at, start = memory, at, jnp.asarray(centres((H, W)))
    else:
        x_at = jnp.broadcast_to(p["queries"], (B, *p["queries"].shape))
        x, start = jnp.zeros_like(x_at), 0.0
    _, all_LBQD = run(cfg, p["decoder"], x, decoder_rng, x_at, places(x), memory, at, where)
    if cfg.queries == "places":  # the loss also trains the queries' starting values
        all_LBQD = jnp.concatenate([memory[None], all_LBQD])
    states = norm.layer(p["decoder_norm"], all_LBQD if train else all_LBQD[-1:], eps=EPS).swapaxes(0, 1)
    logits, boxes = heads(p, states, start)
    out = {"logits": logits[:, -1], "boxes": boxes[:, -1]}
    earlier = {"layer_logits": logits[:, :-1], "layer_boxes": boxes[:, :-1]}
    return out | earlier if train and logits.shape[1] > 1 else out


def heads(p, states_BLQD: jax.Array, start) -> tuple[jax.Array, jax.Array]:
    """Logits (..., K + 1) and boxes (..., 4), float32; start: the boxes' starting logits."""
    hidden = states_BLQD
    for n in range(BOX_LAYERS):
        hidden = linear.linear(p["box"][f"layer{n}"], jax.nn.relu(hidden) if n else hidden)
    logits = linear.linear(p["classes"], states_BLQD).astype(jnp.float32)
    return logits, jax.nn.sigmoid(hidden.astype(jnp.float32) + start)


PRESETS = {"detr-resnet-50": DetrConfig(), "detr-resnet-101": DetrConfig(depths=(3, 4, 23, 3))}
