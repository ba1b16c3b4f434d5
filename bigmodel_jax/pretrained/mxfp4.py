"""MXFP4: 32 values share a power of two, each one of 16 four-bit floats (OCP Microscaling Formats v1.0).

A packed tensor X is published as X_blocks (E, R, G, 16) and X_scales (E, R, G), uint8; the plain one is
(E, 32 G, R): rows R are its outputs, and a block runs along its inputs.
"""

import jax.numpy as jnp
import numpy as np

from bigmodel_jax.pretrained.names import Source, Tensor

POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = np.array([*POSITIVE, *(-x for x in POSITIVE)], np.float32)
# Both values of a byte: the low four bits come first.
PAIRS = np.stack([VALUES[np.arange(256) & 15], VALUES[np.arange(256) >> 4]], axis=-1)
EXPONENT_BIAS = 127
BLOCKS, SCALES = "_blocks", "_scales"


def dequantize(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(E, 32 G, R) bfloat16, in which every value is exact; blocks (E, R, G, 16), scales (E, R, G), uint8.

    As transformers' convert_moe_packed_tensors; one expert at a time, since the intermediate is float32.
    """
    E, R, G, _ = blocks.shape
    out = np.empty((E, G * 32, R), jnp.bfloat16)
    for e in range(E):
        values = PAIRS[blocks[e]].reshape(R, G, 32)
        exponents = scales[e].astype(np.int32)[..., None] - EXPONENT_BIAS
        out[e] = np.ldexp(values, exponents).reshape(R, G * 32).T
    return out


def unpack(source: Source) -> Source:
    """The tensors with every packed one as a plain one, dequantised when it is read."""
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
