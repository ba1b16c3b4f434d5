"""Conformer: attention and convolution over the frames of a spectrogram (arXiv:2005.08100).

Shapes and names are those of NVIDIA's Parakeet (Fast Conformer, arXiv:2305.05084): depthwise
separable convolutions shorten the spectrogram, positions are relative (Transformer-XL,
arXiv:1901.02860), and a linear head gives logits for CTC. Padding frames do not affect other
frames: every convolution, batch norm and attention masks them.

Shapes: B batch, T frames, F mel bins, C channels, D embed, H heads, h head_dim, V vocab, K kernel
width, P positions 2T - 1.
"""

import dataclasses
import functools
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, normal, zeros
from bigmodel_jax.core.ranges import Count, Depth, NonNegative, ShareBelowOne
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models.base import POST_NORM, Entry, Model, ModelConfig, Out, parts_of
from bigmodel_jax.models.compute import StackCompute
from bigmodel_jax.models.flax_module import BATCH_AXIS, inside_batch_axis
from bigmodel_jax.models.sizes import Cut, Divides
from bigmodel_jax.nn import batch_norm, convolution, feedforward, linear, norm
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.attention.attention import Where
from bigmodel_jax.nn.dropout import dropout


@dataclasses.dataclass(frozen=True)
class ConformerConfig(ModelConfig):
    """A Conformer encoder with a CTC head (arXiv:2005.08100).

    The reference implementation is transformers' `ParakeetForCTC`, whose defaults, Parakeet-CTC
    0.6B, are the defaults here. That model was trained with dropout 0.1.
    """

    num_mels: Count = 80  # mel bins of a frame
    vocab_size: Count = 1025  # tokens, CTC's blank included; the objective says which id is the blank
    subsampling: Literal[2, 4, 8, 16] = 8
    "how many frames of the spectrogram become one frame of the layers"
    subsampling_dim: Count = 256  # channels of the convolutions that shorten the spectrogram
    num_layers: Depth = 24  # number of blocks
    embed_dim: Count = 1024  # width of the residual stream
    num_heads: Count = 8  # attention heads of a layer
    mlp_dim: Count = 4096  # hidden width of the feed-forward layer
    conv_width: Count = 9  # frames that a layer's convolution spans; odd
    conv_norm: Literal["batch", "layer"] = "batch"
    "the norm after a layer's convolution; layer: keeps no running statistics, for small batches"
    bias: bool = True  # whether attention, feed-forward layers and the convolution module have biases
    scale_input: bool = True  # whether the input of the layers is multiplied by sqrt(embed_dim)
    init_std: NonNegative = 0.02  # standard deviation of the initial weights
    dropout: ShareBelowOne = 0.0  # dropout rate of the layers' input and of each module's output
    compute: StackCompute = StackCompute()

    SIZES: ClassVar[tuple] = (
        Divides("num_heads", "embed_dim"),
        Divides("subsampling", "num_mels"),
        Cut("num_heads", "heads"),
        Cut("mlp_dim", "mlp"),
        Cut("embed_dim", "mlp"),
        Cut("subsampling_dim", "mlp"),
    )

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    def inputs(self):
        return {"log_mel": None, "num_frames": None}

    def no_mup(self, depth):
        return POST_NORM if depth else "has convolutions, for which there are no width rules"

    def make(self) -> Model:
        return Model(spec(self), parts_of(self, enter, block, leave))

    def validate(self, parallel) -> None:
        super().validate(parallel)
        if self.conv_width % 2 == 0:
            raise ValueError(f"model.conv_width = {self.conv_width}; it must be odd: a frame stands in the middle")
        if self.conv_norm == "batch" and parallel.stage > 1:
            raise ValueError(
                f"model.conv_norm = 'batch' with parallel.stage = {parallel.stage}: a pipeline's layers return sums alone, "
                "and no statistics; 'layer' has none"
            )

    @classmethod
    def tiny(cls) -> "ConformerConfig":
        sizes = {"num_layers": 2, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, "conv_width": 5}
        return cls(num_mels=16, vocab_size=12, subsampling=4, subsampling_dim=8, init_std=0.1, **sizes)


def mlp_spec(cfg: ConformerConfig) -> params.Tree:
    """up (D, mlp_dim) and down (mlp_dim, D)."""
    init = normal(cfg.init_std)
    dense = functools.partial(linear.linear_spec, init=init, bias=cfg.bias)
    return {
        "up": dense(cfg.embed_dim, cfg.mlp_dim),
        "down": dense(cfg.mlp_dim, cfg.embed_dim, axes=("mlp", "embed")),
    }


def attention_spec(cfg: ConformerConfig) -> params.Tree:
    """q, k, v, positions (D, H, h), o (H, h, D), and two biases (H, h) for the queries."""
    init, D, H, h = normal(cfg.init_std), cfg.embed_dim, cfg.num_heads, cfg.head_dim
    positions = Param((D, H, h), ("embed", "heads", "head_dim"), init)
    # decay=False: a bias (H, h) is a vector, although it has two dimensions.
    biases = {
        name: Param((H, h), ("heads", "head_dim"), init, decay=False) for name in ("content_bias", "position_bias")
    }
    tree = attention.spec(D, H, H, h, init=init, out_init=init, bias=cfg.bias)
    return tree | {"positions": positions} | biases


def conv_spec(cfg: ConformerConfig) -> params.Tree:
    """The convolution module: value and gate (D, D), depthwise kernel (K, D), norm, out (D, D)."""
    init, D = normal(cfg.init_std), cfg.embed_dim
    dense = functools.partial(linear.linear_spec, D, D, init=init, bias=cfg.bias)
    depthwise = {"kernel": Param((cfg.conv_width, D), (None, "mlp"), normal(cfg.conv_width**-0.5))}
    bias = {"bias": Param((D,), ("mlp",), zeros())} if cfg.bias else {}
    return {
        "value": dense(),
        "gate": dense(),
        "depthwise": depthwise | bias,
        "norm": batch_norm.spec(D, "mlp") if cfg.conv_norm == "batch" else norm.layer_spec(D),
        "out": dense(axes=("mlp", "embed")),
    }


def block_spec(cfg: ConformerConfig) -> params.Tree:
    """One layer: two feed-forward modules, attention, convolution, and their norms."""
    D = cfg.embed_dim
    return {
        "mlp1_norm": norm.layer_spec(D),
        "mlp1": mlp_spec(cfg),
        "attn_norm": norm.layer_spec(D),
        "attn": attention_spec(cfg),
        "conv_norm": norm.layer_spec(D),
        "conv": conv_spec(cfg),
        "mlp2_norm": norm.layer_spec(D),
        "mlp2": mlp_spec(cfg),
        "out_norm": norm.layer_spec(D),
    }


def subsampling_spec(cfg: ConformerConfig) -> params.Tree:
    """A convolution, then depthwise and pointwise convolutions in turn, then a linear map to D."""
    C, D = cfg.subsampling_dim, cfg.embed_dim
    bias = Param((C,), ("mlp",), zeros())
    tree = {"conv0": {"kernel": Param((3, 3, 1, C), (None, None, None, "mlp"), normal(1 / 3)), "bias": bias}}
    for n in range(1, int(math.log2(cfg.subsampling))):
        tree[f"conv{n}"] = {
            "depthwise": {"kernel": Param((3, 3, C), (None, None, "mlp"), normal(1 / 3)), "bias": bias},
            "pointwise": linear.linear_spec(C, C, init=normal((2 / C) ** 0.5), bias=True),
        }
    bins = cfg.num_mels // cfg.subsampling
    kernel = Param((C, bins, D), ("mlp", None, "embed"), normal((C * bins) ** -0.5))
    return tree | {"out": {"kernel": kernel, "bias": Param((D,), ("embed",), zeros())}}


def spec(cfg: ConformerConfig) -> params.Tree:
    """The subsampling, the stacked layers, and the head (D, V)."""
    head = linear.linear_spec(cfg.embed_dim, cfg.vocab_size, axes=("embed", None), init=normal(cfg.init_std), bias=True)
    return {
        "subsampling": subsampling_spec(cfg),
        "layers": params.stack(block_spec(cfg), cfg.num_layers),
        "head": head,
    }


def subsampled(cfg: ConformerConfig, length):
    """The number of frames that the layers see of a spectrogram of `length` frames."""
    for _ in range(int(math.log2(cfg.subsampling))):
        length = convolution.halved(length)
    return length


def masked(x_BTFC: jax.Array, length_B: jax.Array) -> jax.Array:
    """x (B, T, F, C) with zeros in the frames beyond each row's length (B,)."""
    inside = jnp.arange(x_BTFC.shape[1]) < length_B[:, None]
    return x_BTFC * inside[..., None, None].astype(x_BTFC.dtype)


def subsample(cfg: ConformerConfig, p, log_mel_BTF: jax.Array, length_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Shortens a spectrogram (B, T, F) to ((B, T', D), lengths (B,)); padding counts as 0."""
    x = masked(log_mel_BTF[..., None], length_B)[..., 0]
    length_B = convolution.halved(length_B)
    x = masked(convolution.halving(x, p["conv0"]["kernel"]) + p["conv0"]["bias"], length_B)
    x = jax.nn.relu(x)
    for n in range(1, int(math.log2(cfg.subsampling))):
        depthwise = p[f"conv{n}"]["depthwise"]
        length_B = convolution.halved(length_B)
        x = masked(convolution.halving_depthwise(x, depthwise["kernel"]) + depthwise["bias"], length_B)
        x = jax.nn.relu(masked(linear.linear(p[f"conv{n}"]["pointwise"], x), length_B))
    x = linear.project(x.swapaxes(2, 3), p["out"]["kernel"], num_dims=2) + p["out"]["bias"]
    return x, length_B


def relative_positions(T: int, dim: int) -> jax.Array:
    """Sines and cosines, interleaved, of the distances T - 1 .. -(T - 1): (2T - 1, dim) float32."""
    distance = jnp.arange(T - 1, -T, -1, dtype=jnp.float32)
    angle = distance[:, None] / 10_000.0 ** (jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(2 * T - 1, -1)


def split(cfg: ConformerConfig, rng) -> tuple:
    """Dropout keys: (of the input, of the layers (L,)); (None, None) if nothing is dropped."""
    if rng is None or cfg.dropout == 0.0:
        return None, None
    keys = jax.random.split(rng, cfg.num_layers + 1)
    return keys[0], keys[1:]


def enter(cfg: ConformerConfig, p, batch, *, rng, train: bool, cache) -> Entry:
    """Embeds a batch: log_mel (B, T, F) float, num_frames (B,) int32 (frames without padding)."""
    first, rest = split(cfg, rng)
    dtype = p["head"]["kernel"].dtype
    x_BTD, length_B = subsample(cfg, p["subsampling"], batch["log_mel"].astype(dtype), batch["num_frames"])
    x_BTD = x_BTD * cfg.embed_dim**0.5 if cfg.scale_input else x_BTD
    x_BTD = constrain(dropout(cfg.dropout, x_BTD, first), "batch", "seq", "embed")
    B, T, _ = x_BTD.shape
    places = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    where = Where(places, (places < length_B[:, None]).astype(jnp.int32))
    table = relative_positions(T, cfg.embed_dim).astype(dtype)
    return Entry(x_BTD, rest, (where,), (table,), kept=length_B)


def block(cfg: ConformerConfig, p, x_BTD, rng, where: Where, table_PD, *, train: bool):
    """Maps (B, T, D) -> (B, T, D): an MLP halved, attention, convolution, another MLP halved, a
    norm.
    """
    rngs = (None,) * 4 if rng is None else jax.random.split(rng, 4)
    drop = functools.partial(dropout, cfg.dropout)
    x_BTD = x_BTD + 0.5 * drop(mlp(p["mlp1"], norm.layer(p["mlp1_norm"], x_BTD)), rngs[0])
    h = attend(cfg, p["attn"], norm.layer(p["attn_norm"], x_BTD), where, table_PD)
    x_BTD = constrain(x_BTD + drop(h, rngs[1]), "batch", "seq", "embed")
    h, new = convolve(cfg, p["conv"], norm.layer(p["conv_norm"], x_BTD), where.segments > 0, train)
    x_BTD = x_BTD + drop(h, rngs[2])
    x_BTD = x_BTD + 0.5 * drop(mlp(p["mlp2"], norm.layer(p["mlp2_norm"], x_BTD)), rngs[3])
    return constrain(norm.layer(p["out_norm"], x_BTD), "batch", "seq", "embed"), new


def mlp(p, x_BTD: jax.Array) -> jax.Array:
    """Maps (B, T, D) -> (B, T, D): a feed-forward layer with the SiLU activation."""
    return feedforward.mlp(p, x_BTD, jax.nn.silu)


def attend(cfg: ConformerConfig, p, x_BTD, where: Where, table_PD) -> jax.Array:
    """Attention (B, T, D) by content and by distance (Transformer-XL, section 3.3)."""
    q, k, v = attention.qkv(p, x_BTD)
    distances_PHh = linear.project(table_PD, p["positions"])
    bias = jnp.einsum("bthx,phx->bhtp", q + p["position_bias"], distances_PHh) * cfg.head_dim**-0.5
    h = attention.attend(q + p["content_bias"], k, v, where, where, causal=False, bias=by_distance(bias))
    return attention.project_out(p, h)


def by_distance(x_BHTP: jax.Array) -> jax.Array:
    """Picks each pair's logit by distance: (B, H, T, P) -> (B, H, T, T) (XL, appendix B)."""
    B, H, T, P = x_BHTP.shape
    # Padding by one column and reshaping shifts row t by t columns, without a gather.
    x = jnp.pad(x_BHTP, ((0, 0), (0, 0), (0, 0), (1, 0))).reshape(B, H, P + 1, T)
    return x[:, :, 1:].reshape(B, H, T, P)[..., :T]


def convolve(cfg: ConformerConfig, p, x_BTD, mask_BT, train: bool) -> tuple[jax.Array, dict]:
    """Returns (the convolution module's output (B, T, D), new statistics of batch norm or {})."""
    x_BTD = linear.linear(p["value"], x_BTD) * jax.nn.sigmoid(linear.linear(p["gate"], x_BTD))
    x_BTD = x_BTD * mask_BT[..., None].astype(x_BTD.dtype)
    x_BTD = constrain(convolution.depthwise(x_BTD, p["depthwise"]["kernel"]), "batch", "seq", "mlp")
    x_BTD = x_BTD + p["depthwise"]["bias"] if "bias" in p["depthwise"] else x_BTD
    x_BTD, new = normalise(cfg, p["norm"], x_BTD, mask_BT, train)
    return linear.linear(p["out"], jax.nn.silu(x_BTD)), new


def normalise(cfg: ConformerConfig, p, x_BTD, mask_BT, train: bool) -> tuple[jax.Array, dict]:
    """Batch norm over unmasked frames, or LayerNorm: (normalised (B, T, D), new statistics)."""
    if cfg.conv_norm == "layer":
        return norm.layer(p, x_BTD), {}
    if not train:
        return batch_norm.apply(p, x_BTD, p["mean"], p["var"]), {}
    found = batch_norm.sums(x_BTD, mask_BT, _over_devices)
    return batch_norm.apply(p, x_BTD, *batch_norm.moments(found)), batch_norm.moved(p, found)


def _over_devices(x: jax.Array) -> jax.Array:
    """The sum over all devices inside a per-device step (pmap, shard_map); x itself elsewhere."""
    return jax.lax.psum(x, BATCH_AXIS) if inside_batch_axis() else x


def leave(cfg: ConformerConfig, p, entry: Entry, x_BTD, new, batch, *, train: bool) -> Out:
    """Returns {"logits" (B, T', V), "num_frames" (B,) int32, the frames without padding}."""
    logits = linear.linear(p["head"], x_BTD)
    return Out(
        {"logits": logits, "num_frames": entry.kept}, updates={f"layers/conv/norm/{name}": x for name, x in new.items()}
    )


PRESETS = {"parakeet-ctc-0.6b": ConformerConfig()}
