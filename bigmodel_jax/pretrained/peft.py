"""Reads and writes LoRA adapters in PEFT's format (0.21).

A tensor's name is `base_model.model.`, the module's name in the family's table, and one of these:
- `.lora_A.weight` (r, in) and `.lora_B.weight` (out, r) for a linear map;
- `.lora_embedding_A` (r, rows) and `.lora_embedding_B` (dim, r) for an embedding;
- `.lora_magnitude_vector` (out,) in addition for DoRA.

`modules_to_save` are whole weights under their own names. One published tensor may hold several of
our matrices, such as GPT-2's `c_attn`; peft_joined.py splits and joins its adapters.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from bigmodel_jax.core.params import Param
from bigmodel_jax.pretrained import names, peft_config
from bigmodel_jax.pretrained.family import Family
from bigmodel_jax.pretrained.folder import open_file
from bigmodel_jax.pretrained.names import Piece, Tensor
from bigmodel_jax.pretrained.peft_config import PeftConfig
from bigmodel_jax.pretrained.peft_joined import Matrix, joined, parted

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# Our name of each part of an adapter -> PEFT's name, for a linear map and for an embedding.
LINEAR = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
EMBEDDING = {"a": "lora_embedding_A", "b": "lora_embedding_B", "magnitude": "lora_magnitude_vector"}


@dataclasses.dataclass(frozen=True)
class Adapters:
    """A PEFT folder by our paths: adapters, and whole values of `modules_to_save` in our layout."""

    matrices: Mapping[str, Matrix]
    saved: Mapping[str, np.ndarray]
    rslora: bool = False  # the scale is alpha / sqrt(rank), not alpha / rank
    dropout: float = 0.0  # the rate on an adapter's input in training


class Module(NamedTuple):
    """One published module whose matrix can have an adapter. paths: our parameters that it holds.

    inside: number of inputs; widths: number of outputs of each path; embedding: is it a table?
    """

    paths: tuple[str, ...]
    piece: Piece
    inside: int
    widths: tuple[int, ...]
    embedding: bool

    @property
    def outside(self) -> int:
        return sum(self.widths)

    @property
    def names(self) -> Mapping[str, str]:
        """PEFT's name of each part of the module's adapter, by our name."""
        return EMBEDDING if self.embedding else LINEAR


def modules(family: Family, spec: Mapping[str, Param], cfg: Any) -> dict[str, Module]:
    """{module name: Module} of every two-dimensional weight that lies in a tensor of its own."""
    found = {}
    for piece in names.pieces(family.rows, spec, cfg):
        row, shapes = piece.row, names.their_shapes(piece, spec)
        embedding = row.paths[0].endswith("/table") and not row.paths[0].startswith("head/")
        out = 0 if row.layout.out_first and not embedding else 1
        side_by_side = len(shapes) == 1 or (row.axis == out and not row.interleaved)
        if len(shapes[0]) == 2 and side_by_side and piece.name.endswith(".weight"):
            widths = tuple(shape[out] for shape in shapes)
            found[piece.name.removesuffix(".weight")] = Module(row.paths, piece, shapes[0][1 - out], widths, embedding)
    return found


# ---------------------------------------------------------------- read


def is_folder(path: Path) -> bool:
    """Whether a folder holds PEFT adapters."""
    return (path / peft_config.FILE).is_file()


def read(folder: Path, family: Family, spec: Mapping[str, Param], cfg: Any, base: Mapping[str, Any]) -> Adapters:
    """Reads a folder's adapters. spec: the model's published parameters; base: its values by path.

    Raises a ValueError of one line for adapters of another base and for unsupported features.
    """
    config, known = peft_config.read(folder), modules(family, spec, cfg)
    linear = {name for name, module in known.items() if not module.embedding}
    output = next((name for name, module in known.items() if module.paths[0].startswith("head/")), "")
    targets = {name for name in known if config.targets(name, linear, output)}
    left, matrices = _open(folder), {}  # each tensor that is used is taken out of `left`
    for paths in dict.fromkeys(known[name].paths for name in known if name in targets):
        mine = {name: module for name, module in known.items() if module.paths == paths}
        whole = _matrix(folder, config, mine, targets, left)
        matrices |= dict(zip(paths, parted(whole, next(iter(mine.values())).widths), strict=True))
    for name, module in known.items():
        copy = left.pop(f"{name}.base_layer.weight", None)
        if copy is not None and not _is_base(copy, module, base):
            raise ValueError(f"{folder}: {name}.base_layer.weight is not the base's; they belong to another base")
    whole = list(names.pieces(family.rows, spec, cfg))
    saved = _saved(folder, spec, [piece for piece in whole if config.saves(piece.name.rpartition(".")[0])], left, base)
    _check_none(folder, whole, left, "head/table" in spec)
    return Adapters(matrices, saved, config.use_rslora, config.lora_dropout)


def _saved(
    folder: Path, spec: Mapping[str, Param], pieces: list[Piece], left: dict[str, Tensor], base: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The whole values of `modules_to_save` by our path, taken out of `left`; else the base's."""
    saved: dict[str, np.ndarray] = {}
    for piece in pieces:
        if piece.name not in left:
            raise ValueError(f"{folder / WEIGHTS}: {piece.name} is missing; the base or the file is another")
        want = names.joined_shape(names.their_shapes(piece, spec), piece.row.axis)
        value = _shaped(folder, piece.name, left.pop(piece.name), want)
        source = {piece.name: Tensor(value.shape, value.dtype, lambda value=value: value)}
        for path in piece.row.paths:
            own = saved[path] = saved[path] if path in saved else np.array(base[path], np.float32)
            own[piece.index] = names.read(piece, spec, source, path)
    return saved


def _check_none(folder: Path, pieces: list[Piece], left: Mapping[str, Tensor], has_head: bool) -> None:
    """Raises ValueError where `left` still has a tensor: all must be used."""
    if not has_head and (head := next((name for name in left if name.startswith("lm_head.")), None)):
        raise ValueError(f"{folder / WEIGHTS}: {head} is not read: the base's head is the table of its embedding")
    for piece in pieces:
        if len(piece.row.paths) > 1 and any(name.startswith(piece.name.removesuffix("weight")) for name in left):
            raise ValueError(
                f"{folder}: {piece.name} holds {len(piece.row.paths)} matrices of ours, and one adapter of them is not read; "
                "PEFT's merge_and_unload writes a model to import"
            )
    if left:
        raise ValueError(
            f"{folder / WEIGHTS}: {_few(left)} of another base, or of a module that {peft_config.FILE} does not name"
        )


def _open(folder: Path) -> dict[str, Tensor]:
    """The tensors of the folder without `base_model.model.` before each name."""
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = " (adapter_model.bin is a pickle, which may run code and is never opened)"
        raise ValueError(f"{folder}: no {WEIGHTS}{pickled if (folder / 'adapter_model.bin').is_file() else ''}")
    found = {}
    for name, tensor in open_file(path):
        # Older files write DoRA's magnitude vector with the suffix ".weight".
        short = re.sub(r"\.lora_magnitude_vector\.weight$", ".lora_magnitude_vector", name.removeprefix(PREFIX))
        if not name.startswith(PREFIX):
            raise ValueError(f"{path}: {name} does not begin with {PREFIX}")
        if "float" not in str(tensor.dtype):
            raise ValueError(f"{path}: {name} holds {str(tensor.dtype).lower()}, which are no weights")
        found[short] = tensor
    return found


def _matrix(
    folder: Path, config: PeftConfig, mine: dict[str, Module], targets: set[str], left: dict[str, Tensor]
) -> Matrix:
    """The adapter of one parameter with all its layers. Its tensors are taken out of `left`."""
    chosen = [name for name in mine if name in targets]
    scales = {(config.rank(name), config.alpha(name)): name for name in chosen}
    if len(scales) > 1:
        said = ", ".join(f"{name} has rank {r} and alpha {alpha:g}" for (r, alpha), name in list(scales.items())[:2])
        raise ValueError(f"{folder / peft_config.FILE}: {said}; layers of one stack take one rank and one alpha")
    ((rank, alpha),) = scales
    first = mine[chosen[0]]
    lead = tuple(max(m.piece.index[i] for m in mine.values()) + 1 for i in range(len(first.piece.index)))
    shapes = {"a": (first.inside, rank), "b": (rank, first.outside)} | (
        {"magnitude": (first.outside,)} if config.use_dora else {}
    )
    parts: dict[str, Any] = dict.fromkeys(shapes)
    for name in chosen:
        module = mine[name]
        for part, theirs in module.names.items():
            if part in shapes:
                tensor = left.pop(f"{name}.{theirs}", None)
                if tensor is None:
                    raise ValueError(f"{folder / WEIGHTS}: {name}.{theirs} is missing; the base or the file is another")
                # PEFT's tensors are the transposes of our `a` and `b`.
                x = _shaped(folder, f"{name}.{theirs}", tensor, shapes[part][::-1]).T
                if parts[part] is None:
                    parts[part] = np.zeros((*lead, *shapes[part]), x.dtype)
                parts[part][module.piece.index] = x
    if config.use_dora and len(chosen) < len(mine):
        raise ValueError(
            f"{folder / peft_config.FILE}: use_dora on {len(chosen)} of {len(mine)} layers of a stack; all or none"
        )
    return Matrix(rank, alpha, **parts)


def _shaped(folder: Path, name: str, tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor's values; ValueError for another shape or for values that are not finite."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(
            f"{folder / WEIGHTS}: {name} has shape {tuple(tensor.shape)}, but this base needs {tuple(shape)}; these adapters "
            "belong to another base"
        )
    x = tensor.read()
    if not np.isfinite(x.astype(np.float32)).all():
        raise ValueError(f"{folder / WEIGHTS}: {name} holds values that are not finite")
    return x


def _is_base(copy: Tensor, module: Module, base: Mapping[str, Any]) -> bool:
    """Whether the embedding that PEFT writes beside its adapter equals the base's embedding."""
    own = module.piece.row.layout.theirs(np.asarray(base[module.paths[0]][module.piece.index]))
    return tuple(copy.shape) == own.shape and bool(np.array_equal(copy.read().astype(own.dtype), own))


def _few(left: Mapping[str, Any]) -> str:
    listed = sorted(left)
    more = f" and {len(listed) - 3} more are" if len(listed) > 3 else " is" if len(listed) == 1 else " are"
    return ", ".join(listed[:3]) + more


# ---------------------------------------------------------------- write


def write(adapters: Adapters, folder: Path, family: Family, spec: Mapping[str, Param], cfg: Any) -> None:
    """Writes both files of a PEFT folder, which `peft.PeftModel.from_pretrained` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    known, tensors, chosen = modules(family, spec, cfg), {}, []
    matrices = _by_module(adapters, known, family)
    for name, module in known.items():
        matrix = matrices.get(module.paths)
        # A layer of a stack without an adapter has zeros, and no tensors are written for it.
        if matrix is None or not (matrix.a[module.piece.index].any() or matrix.b[module.piece.index].any()):
            continue
        chosen.append(name)
        for part, theirs in module.names.items():
            if (x := getattr(matrix, part)) is not None:
                tensors[f"{PREFIX}{name}.{theirs}"] = np.ascontiguousarray(np.asarray(x)[module.piece.index].T)
    saved = []
    for piece in names.pieces(family.rows, spec, cfg):
        if mine := [path for path in piece.row.paths if path in adapters.saved]:
            if len(mine) < len(piece.row.paths):
                raise ValueError(
                    f"export: {mine[0]} is trained in full, and {piece.name} holds {len(piece.row.paths)} matrices of ours; "
                    "without --peft the merged weights are written"
                )
            tensors[f"{PREFIX}{piece.name}"] = names.to_theirs(piece, adapters.saved)
            saved.append(piece.name.rpartition(".")[0])
    peft_config.write(_config(adapters, matrices, known, chosen, [*dict.fromkeys(saved)]), folder)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _by_module(adapters: Adapters, known: Mapping[str, Module], family: Family) -> dict[tuple[str, ...], Matrix]:
    """The adapters by the paths in one published tensor; ValueError where PEFT has no such form."""
    held = {module.paths: module for module in known.values()}
    if lacking := adapters.matrices.keys() - {path for paths in held for path in paths}:
        raise ValueError(
            f"export: {sorted(lacking)[0]} has an adapter, and no tensor of {family.architecture} holds that matrix; "
            "without --peft the merged weights are written"
        )
    found = {}
    for paths, module in held.items():
        mine = [adapters.matrices.get(path) for path in paths]
        if any(mine):
            found[paths] = joined(paths, mine, module.widths, adapters.rslora)
    return found


def _config(
    adapters: Adapters,
    matrices: Mapping[tuple[str, ...], Matrix],
    known: Mapping[str, Module],
    chosen: list[str],
    saved: list[str],
) -> PeftConfig:
    ranks = {paths: matrix.rank for paths, matrix in matrices.items()}
    alphas = {paths: matrix.alpha for paths, matrix in matrices.items()}
    r, alpha = (max(found.values(), key=[*found.values()].count) for found in (ranks, alphas))
    patterns = {known[name].paths: _pattern(known[name].piece.row.theirs) for name in chosen}
    return PeftConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=adapters.dropout,
        use_rslora=adapters.rslora,
        use_dora=any(matrix.magnitude is not None for matrix in matrices.values()),
        fan_in_fan_out=any(not known[name].piece.row.layout.out_first for name in chosen),
        target_modules=_shortest(chosen, known),
        modules_to_save=saved or None,
        rank_pattern={patterns[paths]: n for paths, n in ranks.items() if n != r and paths in patterns},
        alpha_pattern={patterns[paths]: n for paths, n in alphas.items() if n != alpha and paths in patterns},
    )


def _pattern(theirs: str) -> str:
    """A regular expression that matches the module's name in every layer."""
    return re.escape(theirs.removesuffix(".weight")).replace(r"\{i\}", r"\d+").replace(r"\{e\}", r"\d+")


def _shortest(chosen: list[str], known: Mapping[str, Module]) -> list[str]:
    """The `target_modules`: last parts of names if they select just `chosen`, else whole names."""
    ends = sorted({name.rpartition(".")[2] for name in chosen})
    return ends if {name for name in known if name.rpartition(".")[2] in ends} == set(chosen) else chosen
