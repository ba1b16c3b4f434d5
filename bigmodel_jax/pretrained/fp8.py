"""DeepSeek's 8-bit weights: float8 e4m3, and one float32 factor for each block of 128 x 128 of them.

X.weight (R, C) is published with X.weight_scale_inv (R / 128, C / 128), both rounded up; the plain tensor is their
product (DeepSeek-V3, arXiv:2412.19437, section 3.3.2; weight_dequant of its inference/kernel.py).
"""

import numpy as np

from bigmodel_jax.pretrained.names import Source, Tensor

BLOCK = 128
SCALES = "_scale_inv"


def dequantize(weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(R, C) float32; weights (R, C) float8, scales (R / BLOCK, C / BLOCK) float32, rounded up."""
    out = weights.astype(np.float32)
    for row, factors in enumerate(scales):  # by rows of blocks, so that the factors are never as large as the weights
        out[row * BLOCK : (row + 1) * BLOCK] *= np.repeat(factors, BLOCK)[: out.shape[1]]
    return out


def unpack(source: Source) -> Source:
    """The tensors with every 8-bit one as a plain one, dequantised when it is read."""
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
