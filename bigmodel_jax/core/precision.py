"""Which number format each stage uses; casting happens once, at the top of the loss."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

Float = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Policy:
    """param: master weights and optimizer state; compute: products in the model.

    Softmax, loss, norms, rotary angles and every reduction over a batch stay float32 whatever is chosen here:
    bfloat16 has 8 bits of mantissa, and a sum of thousands of terms loses what training needs.
    """

    param: Float = "float32"
    compute: Float = "float32"


def cast(tree: Any, dtype: str) -> Any:
    """Floating leaves in `dtype`, all others untouched."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, tree)
