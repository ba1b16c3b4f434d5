"""Weights of 8 or 4 bits: how `launch.py quantize` stores a model, and training that expects it.

Every parameter becomes a constant. A matrix is stored in blocks of small numbers, each block with a
bfloat16 scale (core/storage.py `Blocks`). Vectors, norms and routers stay as they are.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, Literal

import jax

from bigmodel_jax.core import params
from bigmodel_jax.core.channels import Channels
from bigmodel_jax.core.params import Param, Tree
from bigmodel_jax.core.ranges import CountOrZero
from bigmodel_jax.core.storage import Blocks, Dense, Storage, dense, stored
from bigmodel_jax.models.adapted import is_table, matrix
from bigmodel_jax.models.base import Model
from bigmodel_jax.models.bases import APART, is_stack_matrix
from bigmodel_jax.nn.lora import BRANCH

Kind = Literal["int8", "int4", "nf4", "float8", "int8_dynamic", "int8_static"]
PRODUCTS = ("int8_dynamic", "int8_static")  # the kinds that also round the inputs of products
TableKind = Literal["int8", "bfloat16", "float32"]

# Tables that nn/linear.py `embed` and nn/head.py read in their stored form.
TABLES = ("embed/table", "head/table")
# Values per scale, where it is not 64. docs/quantize.md says what blocks of 256 lose in int8.
BLOCK = {"int8": 256, "int4": 32}
# The smallest block: in smaller ones, the scales take more memory than the values save.
LEAST = 8


@dataclasses.dataclass(frozen=True)
class QuantizeConfig:
    """How the weights of a run that does not train are stored; kind "none": as they were trained.

    kind: "int8_dynamic" and "int8_static" multiply int8 by int8 (core/channels.py) in the stack of
    layers, and store other matrices as "int8".
    block: values per scale; 0 = 256 for int8, 32 for int4, otherwise 64. If this number does not
    divide a dimension, the block is the dimension's largest smaller divisor. If that divisor is
    below 8, the weight stays as it is.
    tables: storage of the tables of the embeddings and the head.
    keep: a regular expression of whole paths of parameters that stay as they are.
    aware: the weights train, and every pass reads them rounded as they would be stored. The
    gradient ignores the rounding (arXiv:1712.05877, arXiv:1308.3432).
    """

    kind: Literal["none", Kind] = "none"
    block: CountOrZero = 0
    tables: TableKind = "int8"
    keep: str = ""
    aware: bool = False

    def stored(self, model: Model, dtype: str) -> Model:
        """The model with its weights as stored constants; dtype: the dtype in which it computes.

        Raises ValueError, which names the parameter, if one cannot be stored as asked.
        """
        if self.kind == "none":
            return model
        self._check(model)
        spec = {path: self._constant(path, p) for path, p in params.paths(model.spec).items()}
        if self.aware:
            rounded = {path: p.storage for path, p in spec.items() if p.storage != Dense()}
            return _reading(model, functools.partial(_rounded, rounded))
        made_dense = frozenset(path for path, p in spec.items() if _is_made_dense(path, p))
        read = functools.partial(
            _read, made_dense, {path: p.axes[-1] or "" for path, p in spec.items() if p.axes}, dtype
        )
        spec = params.from_paths(spec)
        init = model.init and functools.partial(_init, model.init, spec)
        return _reading(model, read)._replace(spec=spec, init=init)

    def _check(self, model: Model) -> None:
        if BRANCH in model.spec:
            raise ValueError(
                f"quantize.kind = {self.kind!r} with adapters; a base in 8 or 4 bits is adapters.base, and `export` merges"
            )
        if self.aware and self.kind in PRODUCTS:
            raise ValueError(
                f"quantize.aware = True with quantize.kind = {self.kind!r}; it must be int8, int4, nf4 or float8"
            )

    def storage(self, path: str, p: Param) -> Storage:
        """How one parameter is stored."""
        if is_table(p):
            return self._blocks("int8", p) if self.tables == "int8" else Dense()
        if self.kind not in PRODUCTS:
            return self._blocks(self.kind, p)
        if not is_stack_matrix(path, dataclasses.replace(p, decay=True)):
            return self._blocks("int8", p)
        found = matrix(path, p)
        return Channels(len(found.lead.shape), len(found.inner.shape), self.kind == "int8_static")

    def _blocks(self, kind: Kind, p: Param) -> Storage:
        blocks = Blocks(kind, self.block or BLOCK.get(kind, 64), narrow=True)
        odd = kind in ("int4", "nf4") and p.shape[-1] % 2  # `Blocks.check` refuses these
        return blocks if odd or blocks.block(p.shape[-1]) >= min(LEAST, p.shape[-1]) else Dense()

    def _constant(self, path: str, p: Param) -> Param:
        if p.kind == "statistic":
            return p
        found = dataclasses.replace(p, kind="constant", trainable=False)
        if self._is_kept(path) or matrix(path, p) is None or APART.search(path):
            return found
        try:
            found = dataclasses.replace(found, storage=self.storage(path, p))
        except ValueError as error:
            raise ValueError(
                f"quantize.kind = {self.kind!r}: {path}: {error}; keep = {path!r} leaves it as it is"
            ) from None
        wide = is_table(p) and self.tables == "bfloat16"
        return dataclasses.replace(found, dtype=self.tables) if wide else found

    def _is_kept(self, path: str) -> bool:
        try:
            return bool(re.fullmatch(self.keep, path))
        except re.error as error:
            raise ValueError(f"quantize.keep = {self.keep!r} is not a regular expression: {error}") from None


def _is_made_dense(path: str, p: Param) -> bool:
    """Whether the model's own code reads the weight as an array, which must be unpacked first."""
    return p.storage != Dense() and not (is_stack_matrix(path, dataclasses.replace(p, decay=True)) or path in TABLES)


def _reading(model: Model, read: Callable[[Tree, Any], Tree]) -> Model:
    """The model whose functions get read(parameters, rng) instead of the parameters."""
    if model.parts:
        apply = dataclasses.replace(model.parts, read=functools.partial(_read_all, read, model.parts.read))
    else:
        apply = functools.partial(_apply, read, model.apply)
    return model._replace(apply=apply)


def _rounded(storages: dict[str, Storage], tree: Tree, rng: Any, above: str = "") -> Tree:
    """The weights as they would be stored, with the gradient of the unrounded weights."""

    def one(path: str, x: Any) -> Any:
        if isinstance(x, tuple):  # unstacked layers (nn/stack.py)
            return tuple(_rounded(storages, layer, rng, f"{path}/") for layer in x)
        if path not in storages:
            return x
        return x + jax.lax.stop_gradient(dense(storages[path].pack(x), x.dtype) - x)

    return params.from_paths({path: one(f"{above}{path}", x) for path, x in params.paths(tree).items()})


def _read(made_dense: frozenset[str], last: dict[str, str], dtype: str, tree: Tree, rng: Any, above: str = "") -> Tree:
    def one(path: str, x: Any) -> Any:
        if isinstance(x, tuple):  # unstacked layers (nn/stack.py)
            return tuple(_read(made_dense, last, dtype, layer, rng, f"{path}/") for layer in x)
        if not stored(x):
            return x
        return dense(x, dtype) if path in made_dense else dataclasses.replace(x, rows_in=dtype, last=last[path])

    return params.from_paths({path: one(f"{above}{path}", x) for path, x in params.paths(tree).items()})


def _read_all(read, before, tree: Tree, rng: Any) -> Tree:
    return before(read(tree, rng), rng)


def _apply(read, apply, tree: Tree, batch: dict, *, rng=None, train=False, cache=None):
    return apply(read(tree, None), batch, rng=rng, train=train, cache=cache)


def _init(init, spec: Tree, rng: Any) -> Tree:
    """The model's own initial values, stored as `spec` says."""
    return params.map_spec(lambda p, x: p.storage.pack(x.astype(p.dtype)), spec, init(rng))
