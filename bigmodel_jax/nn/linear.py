"""Linear maps and embedding tables."""

import math

import jax
import jax.numpy as jnp

from bigmodel_jax.core import precision, storage
from bigmodel_jax.core.channels import Channeled
from bigmodel_jax.core.params import Init, Param, normal, zeros
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.nn import cpu, quantized, stored, table
from bigmodel_jax.nn.decode_forms import rows_in_tiles
from bigmodel_jax.nn.lora import Adapted


def linear_spec(
    in_dim: int,
    out_dim: int,
    *,
    axes: tuple[str | None, str | None] = ("embed", "mlp"),
    init: Init | None = None,
    bias: bool = False,
) -> dict[str, Param]:
    """kernel (in, out) and, with `bias`, bias (out,).

    init: the kernel's initial distribution; by default a normal one of std 1/sqrt(in) (LeCun).
    """
    spec = {"kernel": Param((in_dim, out_dim), axes, init or normal(in_dim**-0.5))}
    return spec | {"bias": Param((out_dim,), (axes[1],), zeros())} if bias else spec


def linear(p: dict, x: jax.Array) -> jax.Array:
    """x (..., in) -> (..., out)."""
    y = project(x, p["kernel"])
    return y + p["bias"] if "bias" in p else y


def project(x: jax.Array, w: jax.Array, num_dims: int = 1) -> jax.Array:
    """Contracts the last `num_dims` dimensions of x with the first ones of w.

    Every product with a weight is computed here. w: an array, a constant in its stored form
    (core/storage.py), or a weight with adapters (lora.py).
    """
    if isinstance(w, Adapted):
        return w.project(x, num_dims, project)
    if isinstance(w, Channeled) and w.scales.shape[:num_dims] == (1,) * num_dims:
        y = quantized.project_stored(num_dims, x, w)
        return rows_in_tiles(y) if stored.platform() == "tpu" else y
    if storage.stored(w):
        return stored.project(project, num_dims, x, w)
    if precision.matmul() != "compute":
        return quantized.project(precision.matmul(), num_dims, x, w)
    if not cpu.active():
        return jnp.tensordot(x, w, axes=num_dims)
    kept, new = x.shape[: x.ndim - num_dims], w.shape[num_dims:]
    y = cpu.dense(x.reshape(*kept, -1), w.reshape(math.prod(w.shape[:num_dims]), -1))
    return y.reshape(*kept, *new)


def embedding_spec(num: int, dim: int, *, init: Init, axis: str | None = "vocab") -> dict[str, Param]:
    """table (num, dim)."""
    return {"table": Param((num, dim), (axis, "embed"), init)}


def embed(p: dict, ids: jax.Array) -> jax.Array:
    """ids (B,), (B, T) or (B, T, ...) int -> (..., dim)."""
    if isinstance(p["table"], Adapted):
        return p["table"].embed(ids, lambda w, ids: embed({"table": w}, ids))
    if storage.stored(p["table"]):
        x = p["table"].rows(ids)
        return _found(x)
    if table.exchange_is_cheaper(p["table"], ids):
        return table.lookup(p["table"], ids)
    # The table's rows are gathered before the lookup. If rows stayed sharded along dim, every
    # activation would have to be exchanged instead.
    return _found(jnp.take(constrain(p["table"], "vocab", None), ids, axis=0))


def _found(x: jax.Array) -> jax.Array:
    """The rows found, sharded as their ids are.

    If a sequence is sharded over `tensor`, this shards the rows found and not the table.
    """
    of_ids = ("batch", "seq")[: x.ndim - 1]
    return constrain(x, *of_ids, *(None,) * (x.ndim - len(of_ids)))


def unembed(p: dict, x: jax.Array) -> jax.Array:
    """Maps x (..., dim) -> logits (..., num) by the table's rows, summed in float32."""
    if isinstance(p["table"], Adapted):
        return _unembed_adapted(p["table"], x)
    if storage.stored(p["table"]):
        return stored.unembed(unembed, x, p["table"])
    if cpu.active() and x.dtype == jnp.float32:
        return cpu.dense(x, p["table"].T)
    return jnp.einsum("...d,vd->...v", x, p["table"], preferred_element_type=jnp.float32)


def _unembed_adapted(table: Adapted, x: jax.Array) -> jax.Array:
    if not table.has_columns:
        return unembed({"table": table.dense(x.dtype)}, x)
    x, w, z, columns = table.columns(x)
    logits = unembed({"table": w}, x)
    return logits + unembed({"table": columns.astype(z.dtype)}, z) if z.shape[-1] else logits
