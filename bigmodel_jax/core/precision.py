"""Which number format each stage uses; casting happens once, at the top of the loss."""

import contextlib
import dataclasses
import threading
from typing import Any, Literal

import jax
import jax.numpy as jnp

Float = Literal["float32", "bfloat16"]
Matmul = Literal["compute", "int8", "float8"]


@dataclasses.dataclass(frozen=True)
class Policy:
    """param: master weights and optimizer state; compute: products in the model; matmul: those of a training step's
    products with weights that may be in 8 bits (nn/quantized.py), while evaluation is in `compute`.

    Softmax, loss, norms, rotary angles and every reduction over a batch stay float32 whatever is chosen here:
    bfloat16 has 8 bits of mantissa, and a sum of thousands of terms loses what training needs.
    """

    param: Float = "float32"
    compute: Float = "float32"
    matmul: Matmul = "compute"


_context = threading.local()


@contextlib.contextmanager
def use(policy: Policy):
    """While a step is traced inside it, products with weights ask `matmul`."""
    previous = matmul()
    _context.value = policy.matmul
    try:
        yield
    finally:
        _context.value = previous


def matmul() -> Matmul:
    """The format of products with weights in what is being traced; "compute" outside `use`."""
    return getattr(_context, "value", "compute")


def cast(tree: Any, dtype: str) -> Any:
    """Floating leaves in `dtype`, all others untouched."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, tree)
