"""Reads MXFP4 weights: 32 values of 4 bits each share one scale, a power of two.

Each value is one of 16 four-bit floats (OCP Microscaling Formats v1.0). A packed tensor X is
published as X_blocks (E, R, G, 16) and X_scales (E, R, G), both uint8. The plain tensor is (E, 32
G, R) for E experts: R counts the outputs, and the 32 values of a block lie along the inputs.
"""

import jax.numpy as jnp
import numpy as np

from bigmodel_jax.pretrained.names import Source, Tensor

POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = np.array([*POSITIVE, *(-x for x in POSITIVE)], np.float32)
# The two values of each byte. The low four bits hold the first.
PAIRS = np.stack([VALUES[np.arange(256) & 15], VALUES[np.arange(256) >> 4]], axis=-1)
# A scale is an unsigned byte, so its exponent is stored with a bias.
EXPONENT_BIAS = 127
BLOCKS, SCALES = "_blocks", "_scales"


def dequantize(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The plain tensor, bfloat16 (E, 32 G, R), in which every value is exact.

    blocks: uint8 (E, R, G, 16); scales: uint8 (E, R, G). The result equals that of transformers'
    convert_moe_packed_tensors. One expert is converted at a time, because the intermediate is
    float32.
    """
    E, R, G, _ = blocks.shape
    out = np.empty((E, G * 32, R), jnp.bfloat16)
    for e in range(E):
        values = PAIRS[blocks[e]].reshape(R, G, 32)
        exponents = scales[e].astype(np.int32)[..., None] - EXPONENT_BIAS
        out[e] = np.ldexp(values, exponents).reshape(R, G * 32).T  # an exact product with 2 ** exponents
    return out


def unpack(source: Source) -> Source:
    """The tensors with each pair of blocks and scales replaced by one plain tensor.

    A tensor is dequantised when it is read. Raises ValueError where blocks lack their scales, or
    scales their blocks.
    """
    plain = {name: tensor for name, tensor in source.items() if not name.endswith((BLOCKS, SCALES))}
    packed = {name.removesuffix(BLOCKS) for name in source if name.endswith(BLOCKS)}
    packed |= {name.removesuffix(SCALES) for name in source if name.endswith(SCALES)}
    for name in packed:
        missing = [name + end for end in (BLOCKS, SCALES) if name + end not in source]
        if missing:
            raise ValueError(f"weights: {missing[0]} is missing, without which {name} cannot be dequantised")
        plain[name] = _lazily(name, source[name + BLOCKS], source[name + SCALES])
    return plain


def _lazily(name: str, blocks: Tensor, scales: Tensor) -> Tensor:
    if blocks.shape[-1] != 16 or blocks.shape[:-1] != scales.shape or len(scales.shape) != 3:
        raise ValueError(
            f"weights: {name}{BLOCKS} {blocks.shape} and {name}{SCALES} {scales.shape}; "
            "expected (experts, rows, groups, 16) and (experts, rows, groups)"
        )
    E, R, G = scales.shape
    return Tensor((E, G * 32, R), "bfloat16", lambda: dequantize(blocks.read(), scales.read()))
