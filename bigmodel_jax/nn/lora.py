"""A weight with low-rank adapters: a node in the parameter tree, which products treat as a weight.

LoRA (arXiv:2106.09685): y = x W + s (x a) b. rsLoRA (arXiv:2312.03732): s = alpha / sqrt(r). DoRA
(arXiv:2402.09353): each output column has a trained length. The norm that this length replaces has
no gradient (section 4.3). The reference implementation is PEFT.

`linear.project`, `embed` and `unembed` read a node without merging it. All other code reads the
merged weight, which costs one product of the weight's size.

Shapes: `lead` are dimensions that count separate weights (layers, experts). I are the weight's
input dimensions, O its output dimensions, r the rank. The input of an embedding table (V, D) is V.
A head's table (V, D) is read as its transpose.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel_jax.core import precision, storage
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.nn import cpu
from bigmodel_jax.nn.dropout import dropout

BRANCH = "adapters"  # the adapters' parameters are at adapters/<adapter's name>/<weight's path>/<part>
ROWS = "adapter_rows"  # beside BRANCH: {adapter's name: (B,) bool, which rows of a batch use it}


class Unmixed(ValueError):
    """A weight is read in a way in which all rows of a batch must use the same adapters."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Low:
    """What one adapter adds to one weight. A part that the adapter lacks is None.

    a: (*lead, *I, r), b: (*lead, r, *O). magnitude: (*lead, *O), a column's length minus the base's
    (DoRA). whole: (*lead, *I, *O), the difference from the base of a weight trained in full. rows:
    (n, D), such a difference for the n rows from `start` on. key: the key of x's dropout, one per
    layer.
    scale: s. rate: the dropout rate. on: (B,) bool, the rows of x that use the adapter; None: all.
    """

    a: Any = None
    b: Any = None
    magnitude: Any = None
    whole: Any = None
    rows: Any = None
    key: Any = None
    on: Any = None
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})
    rate: float = dataclasses.field(default=0.0, metadata={"static": True})
    start: int = dataclasses.field(default=0, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
    """The weight w as it is stored, and its adapters, which apply one after the other.

    num_in: the number of dimensions in I. turned: w is (*lead, *O, *I), as in a head's table.
    """

    w: Any
    low: tuple[Low, ...] = ()
    num_in: int = dataclasses.field(default=1, metadata={"static": True})
    turned: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.w.shape

    @property
    def ndim(self) -> int:
        return len(self.w.shape)

    @property
    def dtype(self) -> Any:
        if isinstance(self.w, jax.Array):
            return self.w.dtype
        return next((leaf.dtype for leaf in jax.tree.leaves(self.low) if _is_float(leaf)), jnp.dtype(jnp.float32))

    def dense(self, dtype: Any = None) -> jax.Array:
        """The merged weight, (*lead, *I, *O). Raises Unmixed where it differs from row to row."""
        if any(low.on is not None for low in self.low):
            raise Unmixed(f"a weight {self.shape} is merged with its adapters before its product")
        base = storage.dense(self.w, dtype or self.dtype)
        w = self._base(base)
        for low in self.low:
            if low.a is not None:
                w = w + self._product(low).astype(w.dtype)
                lengths = self._lengths(low, base)
                w = w if lengths is None else w * jnp.expand_dims(lengths, self._inner(low)).astype(w.dtype)
        # The barrier keeps the merged weight one array, so that the rest compiles as for the base.
        return w if w is base else jax.lax.optimization_barrier(w)

    def project(self, x: jax.Array, num_dims: int, product: Callable) -> jax.Array:
        """Maps x (..., *I) -> (..., *O).

        product(x, w, num_dims): the product with a weight without adapters.
        """
        layered = any(low.a is not None and low.a.ndim != self.num_in + 1 for low in self.low)
        if num_dims != self.num_in or self.turned or layered:
            return product(x, self.dense(x.dtype), num_dims)
        if self._is_merged(x, num_dims):
            (low,) = self.low
            return cpu.adapted(low.scale, x, self.w, low.a.astype(x.dtype), low.b.astype(x.dtype))
        y = product(x, self._base(self.w), num_dims)
        for low in self.low:
            if low.a is None:
                continue
            more = _narrow(x if low.key is None else dropout(low.rate, x, low.key), low, num_dims)
            y = y + _in_rows(low, more).astype(y.dtype)
            lengths = self._lengths(low, self.w)
            y = y if lengths is None else _in_rows(low, y * lengths.astype(y.dtype), y)
        # Without the barrier XLA could fuse the sum into later operations, which would then round
        # in other places than after the base's product.
        return jax.lax.optimization_barrier(y) if self.low else y

    def _is_merged(self, x: jax.Array, num_dims: int) -> bool:
        """Whether a CPU device multiplies x by weight and adapter as one matrix.

        Only float32 is merged, because the sum of two bfloat16 products rounds differently.
        """
        if (
            not cpu.active()
            or len(self.low) != 1
            or not isinstance(self.w, jax.Array)
            or precision.matmul() != "compute"
        ):
            return False
        (low,) = self.low
        plain = low.a is not None and all(
            part is None for part in (low.magnitude, low.whole, low.rows, low.key, low.on)
        )
        inner = math.prod(x.shape[x.ndim - num_dims :])
        pays = cpu.merging_pays(x.size // inner, inner, self.w.size // inner)
        return plain and pays and x.dtype == self.w.dtype == jnp.float32

    def embed(self, ids: jax.Array, look_up: Callable) -> jax.Array:
        """The rows (..., D) of ids (...).

        look_up(table, ids): the lookup in a table without adapters.
        """
        if (self.turned or self.shape[0] == 1) and any(low.a is not None for low in self.low):
            # A lookup in a table of one row is a broadcast, which the compiler fuses as the base's.
            return look_up(self.dense(), ids)
        x = look_up(self._base(self.w, rows=False), ids)
        for low in self.low:
            if low.rows is not None:
                at = ids - low.start
                is_new = (at >= 0) & (at < low.rows.shape[0])
                new = jnp.take(low.rows, jnp.where(is_new, at, 0), axis=0)
                x = x + _in_rows(low, jnp.where(is_new[..., None], new, 0)).astype(x.dtype)
        for low in self.low:
            if low.a is not None:
                x = x + _in_rows(low, low.scale * (look_up(low.a, ids) @ low.b)).astype(x.dtype)
                lengths = self._lengths(low, self.w)
                x = x if lengths is None else _in_rows(low, x * lengths.astype(x.dtype), x)
        return jax.lax.optimization_barrier(x) if self.low else x

    @property
    def has_columns(self) -> bool:
        """Whether the logits have the form of `columns`. Those of a head with DoRA do not."""
        return not (self.turned and any(low.magnitude is not None for low in self.low))

    def columns(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns (x', w, z, c) such that the logits of x (..., D) are x' w^T + z c^T.

        w: (V, D), z: (..., n), c: (V, n); n may be 0.
        """
        z, c = [], []
        for low in reversed(self.low):
            if low.a is None:
                continue
            if low.magnitude is not None:
                x = _in_rows(low, x * self._lengths(low, self.w).astype(x.dtype), x)
            z.append(_in_rows(low, low.scale * (x @ (low.a if self.turned else low.b.T))))
            c.append(low.b.T if self.turned else low.a)
        for low in self.low:
            if low.rows is not None:
                z.append(_in_rows(low, x @ low.rows.T))
                here = jnp.arange(self.shape[0])[:, None] == low.start + jnp.arange(low.rows.shape[0])
                c.append(here.astype(x.dtype))
        w = storage.dense(self._base(self.w, rows=False), x.dtype)
        none = (jnp.zeros((*x.shape[:-1], 0), x.dtype), jnp.zeros((self.shape[0], 0), x.dtype))
        return x, w, jnp.concatenate([none[0], *z], axis=-1), jnp.concatenate([none[1], *c], axis=-1)

    @property
    def is_frozen(self) -> bool:
        """Whether the table in `columns` has no gradient."""
        return all(low.whole is None for low in self.low)

    def _base(self, w: Any, rows: bool = True) -> Any:
        """w plus the parts that are trained in full, the rows only if `rows`."""
        for low in self.low:
            if low.whole is not None:
                w = storage.dense(w, low.whole.dtype) + low.whole
            if rows and low.rows is not None:
                w = storage.dense(w, low.rows.dtype)
                w = w.at[..., low.start : low.start + low.rows.shape[0], :].add(low.rows)
        return w

    def _product(self, low: Low) -> jax.Array:
        """The product scale * a @ b, in the shape of w."""
        lead = low.a.shape[: low.a.ndim - self.num_in - 1]
        a = low.a.reshape(*lead, -1, low.a.shape[-1])
        b = low.b.reshape(*lead, low.b.shape[len(lead)], -1)
        product = low.scale * jnp.matmul(a, b, precision="highest")
        return (product.swapaxes(-1, -2) if self.turned else product).reshape(self.shape)

    def _lengths(self, low: Low, w: Any) -> jax.Array | None:
        """DoRA's factor of each output, (*lead, *O) float32: trained length over detached norm."""
        if low.magnitude is None:
            return None
        w, more = storage.dense(w, jnp.float32).astype(jnp.float32), self._product(low).astype(jnp.float32)
        # |w + more|^2 is summed in parts, so that it has exactly the bits of |w|^2 if `more` is 0.
        before = jnp.sum(w * w, axis=self._inner(low))
        now = jax.lax.stop_gradient(before + jnp.sum((2 * w + more) * more, axis=self._inner(low)))
        # (|w| + magnitude) / |w + more|; its first summand is then exactly 1.
        return jnp.sqrt(before / now) + low.magnitude / jnp.sqrt(now)

    def norms(self, low: Low) -> jax.Array:
        """The lengths of the base's columns, (*lead, *O) float32.

        With `magnitude` added, they are PEFT's magnitude vector.
        """
        w = storage.dense(self.w, jnp.float32).astype(jnp.float32)
        return jnp.sqrt(jnp.sum(w * w, axis=self._inner(low)))

    def _inner(self, low: Low) -> tuple[int, ...]:
        """The indices of the dimensions of w that are the inputs I."""
        lead = low.a.ndim - self.num_in - 1
        first = self.ndim - self.num_in if self.turned else lead
        return tuple(range(first, first + self.num_in))

    # ---------------------------------------------------------------- code that expects an array

    def __jax_array__(self) -> jax.Array:
        return self.dense()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.dense(), name)


def _operator(name: str) -> Callable:
    return lambda self, *args: getattr(self.dense(), name)(*args)


# Python looks operators up in the class, so `__getattr__` does not serve them.
for _name in (
    "getitem",
    "len",
    "neg",
    *(f"{r}{n}" for n in ("add", "sub", "mul", "truediv", "matmul") for r in ("", "r")),
):
    setattr(Adapted, f"__{_name}__", _operator(f"__{_name}__"))


def _in_rows(low: Low, new: jax.Array, old: jax.Array | float = 0) -> jax.Array:
    """`new` (B, ...) in the rows that use the adapter, `old` in the others."""
    if low.on is None:
        return new
    if low.on.shape[0] not in (1, new.shape[0]):
        raise Unmixed(f"a product has {new.shape[0]} rows in a batch of {low.on.shape[0]}")
    return jnp.where(low.on.reshape(-1, *[1] * (new.ndim - 1)), new, jnp.asarray(old, new.dtype))


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _narrow(x: jax.Array, low: Low, num_dims: int) -> jax.Array:
    """s (x a) b. The scale multiplies the narrow array with r columns."""
    rows, a = x.reshape(*x.shape[: x.ndim - num_dims], -1), low.a.reshape(-1, low.a.shape[-1])
    b = low.b.reshape(low.b.shape[0], -1)
    product = cpu.dense if cpu.active() else jnp.matmul
    y = product(low.scale * product(rows, a.astype(x.dtype)), b.astype(x.dtype))
    return y.reshape(*y.shape[:-1], *low.b.shape[1:])


def without_adapters(params: dict) -> dict:
    """The parameters of the base alone: the model without its adapters."""
    return only(params)


def only(params: dict, *names: str) -> dict:
    """The parameters with the adapters of these names alone; ValueError for an unknown name."""
    base, known = {name: part for name, part in params.items() if name != BRANCH}, params.get(BRANCH, {})
    for name in names:
        if name not in known:
            raise ValueError(
                f"adapters: adapter {name!r} is unknown{nearest(name, known)}; known: {', '.join(sorted(known))}"
            )
    return base | {BRANCH: {name: known[name] for name in names}} if names else base
