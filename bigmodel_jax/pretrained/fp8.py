"""Reads DeepSeek's 8-bit weights: float8 e4m3, with one float32 scale for each block of 128 x 128
values.

X.weight (R, C) is published with X.weight_scale_inv (R / 128, C / 128), both rounded up. The weight
is the product of the two (DeepSeek-V3, arXiv:2412.19437, section 3.3.2; `weight_dequant` of its
inference/kernel.py).
"""

import numpy as np

from bigmodel_jax.pretrained.names import Source, Tensor

BLOCK = 128
SCALES = "_scale_inv"


def dequantize(weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The weights as float32 (R, C).

    weights: float8 (R, C); scales: float32 (R / BLOCK, C / BLOCK), rounded up.
    """
    out = weights.astype(np.float32)
    # One row of blocks at a time, so that the expanded scales are never as large as the weights.
    for row, factors in enumerate(scales):
        out[row * BLOCK : (row + 1) * BLOCK] *= np.repeat(factors, BLOCK)[: out.shape[1]]
    return out


def unpack(source: Source) -> Source:
    """The tensors with each 8-bit tensor and its scales replaced by one float32 tensor.

    A tensor is dequantised when it is read. Raises ValueError where weights lack their scales, or
    scales their weights.
    """
    plain = {name: tensor for name, tensor in source.items() if not name.endswith(SCALES)}
    scaled = {name.removesuffix(SCALES) for name in source if name.endswith(SCALES)}
    for name, tensor in plain.items():
        if str(tensor.dtype).startswith("float8") and name not in scaled:
            raise ValueError(f"weights: {name}{SCALES} is missing, without which {name} cannot be dequantised")
    for name in scaled:
        if name not in source:
            raise ValueError(f"weights: {name} is missing, of which there is {name}{SCALES}")
        plain[name] = _lazily(name, source[name], source[name + SCALES])
    return plain


def _lazily(name: str, weights: Tensor, scales: Tensor) -> Tensor:
    expected = tuple(-(-n // BLOCK) for n in weights.shape)
    if len(expected) != 2 or tuple(scales.shape) != expected:
        raise ValueError(
            f"weights: {name} {tuple(weights.shape)} and {name}{SCALES} {tuple(scales.shape)}; "
            f"expected {expected}, one for each {BLOCK} x {BLOCK}"
        )
    return Tensor(weights.shape, "float32", lambda: dequantize(weights.read(), scales.read()))
