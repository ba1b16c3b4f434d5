"""Constant parameters and how they are stored: an adapter's base, a teacher, a reference."""

import dataclasses
import re
from typing import Literal

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, Tree
from bigmodel_jax.core.ranges import Count
from bigmodel_jax.core.storage import Blocks, Dense, Half, Storage

# Routers stay in float32: they are small, and near ties decide which expert gets a token.
APART = re.compile(r"(^|/)router(/|$)")


@dataclasses.dataclass(frozen=True)
class BaseConfig:
    """How constant weights are stored in memory and on disk.

    matrices: storage of the matrices in the stacks of layers; "int8", "int4" and "nf4" have one
    scale per block of values (core/storage.py `Blocks`). block: values in one block. double: the
    scales are stored in 8 bits (QLoRA, arXiv:2305.14314, section 3). tables: storage of the tables
    of the embeddings and the head. Vectors, norms and routers keep the dtype of the spec, float32.
    """

    matrices: Literal["float32", "bfloat16", "int8", "int4", "nf4"] = "float32"
    block: Count = 64
    double: bool = False
    tables: Literal["float32", "bfloat16"] = "float32"

    def freeze(self, spec: Tree, field: str = "adapters") -> Tree:
        """`spec` with every trained parameter made a constant.

        Raises ValueError, which names `field`, if a matrix cannot be stored as asked.
        """
        return params.from_paths({path: self._constant(path, p, field) for path, p in params.paths(spec).items()})

    def of_another(self, spec: Tree, field: str) -> Tree:
        """`spec` as the constants of another model, its statistics included.

        Raises ValueError as `freeze` does.
        """
        return params.constants(self.freeze(spec, field))

    def _constant(self, path: str, p: Param, field: str) -> Param:
        if p.kind != "trained":
            return p
        p = dataclasses.replace(p, kind="constant", trainable=False)
        if is_stack_matrix(path, p):
            try:
                return dataclasses.replace(p, storage=self._storage())
            except ValueError as error:
                raise ValueError(f"{field}: {path}: {error}") from None
        is_table = "vocab" in p.axes and p.axes[0] != "layers"
        return dataclasses.replace(p, dtype=self.tables) if is_table else p

    def _storage(self) -> Storage:
        if self.matrices == "float32":
            return Dense()
        return Half() if self.matrices == "bfloat16" else Blocks(self.matrices, self.block, self.double)


def is_stack_matrix(path: str, p: Param) -> bool:
    """Whether p is a matrix in a stack of layers that nn/linear.py `project` reads.

    A kernel of a convolution is none: its first dimension, the place in the window, has no name.
    """
    is_stacked = p.axes[0:1] == ("layers",) and len(p.shape) >= 3
    return is_stacked and p.axes[1] is not None and bool(p.decay) and not APART.search(path)
