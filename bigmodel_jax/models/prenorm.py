"""The pre-norm Transformer encoder of ViT, CLIP and SigLIP: LayerNorm, attention with biases, MLP.

Shapes: B batch, T tokens, D embed, H heads, h head_dim, F mlp, P patch side, C channels, L layers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Init, Param, constant, zeros
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models.sizes import Cut, Divides
from bigmodel_jax.nn import feedforward, linear, norm, stack
from bigmodel_jax.nn.activations import ACTIVATIONS
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.attention.attention import Where


def xavier(fan_in: int, fan_out: int) -> Init:
    """Glorot & Bengio's uniform distribution, U(-b, b) with b = sqrt(6 / (fan_in + fan_out)).

    The fans are given, because a stored kernel may have more dimensions than its matrix.
    """
    bound = (6 / (fan_in + fan_out)) ** 0.5

    def draw(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return Init(f"uniform({bound:.4g})", draw)


def block_spec(
    cfg, *, qkv: Init, out: Init, up: Init, down: Init, gated: bool = False, layer_scale: float = 0.0
) -> params.Tree:
    """One layer; qkv, out, up and down: initial distributions of its matrices. Biases start at 0.

    gated: the feed-forward layer is SwiGLU. layer_scale: if above 0, the output channels of
    attention and of the feed-forward layer have factors that start at this value (LayerScale,
    Touvron et al., arXiv:2103.17239).
    """
    D, H = cfg.embed_dim, cfg.num_heads
    names = ("attn_scale", "mlp_scale") if layer_scale else ()
    mlp = feedforward.swiglu_spec(D, cfg.mlp_dim, init=up, out_init=down, bias=True) if gated else None
    return {name: Param((D,), ("embed",), constant(layer_scale)) for name in names} | {
        "attn_norm": norm.layer_spec(D),
        "attn": attention.spec(D, H, H, D // H, init=qkv, out_init=out, bias=True),
        "mlp_norm": norm.layer_spec(D),
        "mlp": mlp or feedforward.mlp_spec(D, cfg.mlp_dim, init=up, out_init=down),
    }


def block(cfg, p, x_BTD, where: Where, causal: bool):
    """One layer, (B, T, D) -> (B, T, D)."""
    h = attention.qkv(p["attn"], norm.layer(p["attn_norm"], x_BTD, eps=cfg.norm_eps))
    h = attention.attend(*h, where, where, causal=causal, implementation=cfg.compute.attention)
    h = attention.project_out(p["attn"], h)
    x_BTD = constrain(x_BTD + (p["attn_scale"] * h if "attn_scale" in p else h), "batch", "seq", "embed")
    h = norm.layer(p["mlp_norm"], x_BTD, eps=cfg.norm_eps)
    gated = "gate" in p["mlp"]
    h = feedforward.swiglu(p["mlp"], h) if gated else feedforward.mlp(p["mlp"], h, ACTIVATIONS[cfg.activation])
    return constrain(x_BTD + (p["mlp_scale"] * h if "mlp_scale" in p else h), "batch", "seq", "embed")


def places(x_BTD: jax.Array, segments: jax.Array | None = None) -> Where:
    """Where the tokens of x (B, T, D) stand.

    segments: (B, T) int32. A token sees the tokens of its own segment, and segment 0 is padding.
    Default: one segment.
    """
    B, T, _ = x_BTD.shape
    segments = jnp.ones((B, T), jnp.int32) if segments is None else segments
    return Where(jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T)), segments)


def encode(cfg, layers, x_BTD, *, segments: jax.Array | None = None, causal: bool = False) -> jax.Array:
    """All layers, (B, T, D) -> (B, T, D); segments: as in `places`."""

    def body(layer, x, _, where):
        return block(cfg, layer, x, where, causal), None

    shared = (places(x_BTD, segments),)
    return stack.run(body, layers, x_BTD, shared=shared, remat=cfg.compute.remat, unroll=cfg.compute.unroll)[0]


def patch_spec(patch_size: int, channels: int, dim: int, *, init: Init, bias: bool = True) -> dict[str, Param]:
    """kernel (P, P, C, D), in the layout of a convolution, and bias (D,)."""
    kernel = Param((patch_size, patch_size, channels, dim), (None, None, None, "embed"), init)
    return {"kernel": kernel} | ({"bias": Param((dim,), ("embed",), zeros())} if bias else {})


def patchify(image_BHWC: jax.Array, size: int) -> jax.Array:
    """Images (B, H, W, C) cut into squares, row by row: (B, H // P * W // P, P, P, C).

    Rows and columns beyond the last whole square are left out.
    """
    B, H, W, C = image_BHWC.shape
    rows, columns = H // size, W // size
    squares = image_BHWC[:, : rows * size, : columns * size].reshape(B, rows, size, columns, size, C)
    return squares.swapaxes(2, 3).reshape(B, rows * columns, size, size, C)


def embed_patches(p: dict, image_BHWC: jax.Array) -> jax.Array:
    """Returns (B, patches, D): a convolution whose stride is its width, as one matrix product."""
    kernel = p["kernel"]
    y = linear.project(patchify(image_BHWC.astype(kernel.dtype), kernel.shape[0]), kernel, num_dims=3)
    return y + p["bias"] if "bias" in p else y


def unpatchify(x_BTF: jax.Array, image_shape: tuple[int, int, int], size: int) -> jax.Array:
    """The inverse of `patchify`, for any number of channels: (B, T, P * P * C) -> (B, H, W, C)."""
    B, (rows, columns) = x_BTF.shape[0], (side // size for side in image_shape[:2])
    squares = x_BTF.reshape(B, rows, columns, size, size, -1).swapaxes(2, 3)
    return squares.reshape(B, rows * size, columns * size, -1)


def num_patches(image_shape: tuple[int, int, int], patch_size: int) -> int:
    """The number of whole patches of an image."""
    return (image_shape[0] // patch_size) * (image_shape[1] // patch_size)


class Patches(NamedTuple):
    """A check: an image holds at least one patch.

    all_whole: the image's sides must be multiples of the patch's side.
    """

    all_whole: bool = False

    def wrong(self, cfg, prefix: str, parallel) -> str:
        """What is wrong with the config's sizes, in one line; "" if nothing is."""
        shape, size = f"{prefix}image_shape = {cfg.image_shape}", f"{prefix}patch_size = {cfg.patch_size}"
        if num_patches(cfg.image_shape, cfg.patch_size) < 1:
            return f"{size}; it must be at most the sides of {shape}"
        if self.all_whole and any(side % cfg.patch_size for side in cfg.image_shape[:2]):
            return f"{size} does not divide the sides of {shape}: what comes out would be smaller"
        return ""


SIZES = (Divides("num_heads", "embed_dim"), Cut("num_heads", "heads"), Cut("mlp_dim", "mlp"))
