"""Linear maps and embedding tables."""

import jax
import jax.numpy as jnp

from bigmodel_jax.core.params import Init, Param, normal, zeros
from bigmodel_jax.core.sharding import constrain


def linear_spec(
    in_dim: int,
    out_dim: int,
    *,
    axes: tuple[str | None, str | None] = ("embed", "mlp"),
    init: Init | None = None,
    bias: bool = False,
) -> dict[str, Param]:
    """kernel (in, out) and, if asked, bias (out,); the default initial std is 1/sqrt(in) (LeCun)."""
    spec = {"kernel": Param((in_dim, out_dim), axes, init or normal(in_dim**-0.5))}
    return spec | {"bias": Param((out_dim,), (axes[1],), zeros())} if bias else spec


def linear(p: dict, x: jax.Array) -> jax.Array:
    """x (..., in) -> (..., out)."""
    y = x @ p["kernel"]
    return y + p["bias"] if "bias" in p else y


def embedding_spec(num: int, dim: int, *, init: Init, axis: str | None = "vocab") -> dict[str, Param]:
    """table (num, dim)."""
    return {"table": Param((num, dim), (axis, "embed"), init)}


def embed(p: dict, ids: jax.Array) -> jax.Array:
    """ids (...) int -> (..., dim)."""
    # Rows whole before the lookup: cut along dim, every activation would have to be exchanged instead.
    return jnp.take(constrain(p["table"], "vocab", None), ids, axis=0)


def unembed(p: dict, x: jax.Array) -> jax.Array:
    """x (..., dim) -> logits (..., num) against the rows of the table, summed in float32: the softmax reads them."""
    return jnp.einsum("...d,vd->...v", x, p["table"], preferred_element_type=jnp.float32)
