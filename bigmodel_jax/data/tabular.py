"""Tables of numbers, standardized by the training rows' mean and standard deviation."""

import array
import dataclasses
import functools
import gzip
import importlib.util
import itertools
import json
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.core.ranges import CountOrZero, ProperShare
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data.base import BadRecords, DataConfig, lacks, log_skipped
from bigmodel_jax.data.fields import Field, per_row
from bigmodel_jax.data.holdout import check_fraction, held_out
from bigmodel_jax.data.sources.source import Records, Source
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.metrics.groups import names_of

DIABETES = "sklearn:diabetes"
DIABETES_COLUMNS = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6", "progression")


@dataclasses.dataclass(frozen=True)
class Tables(TableFiles):
    """Files as in `TableFiles`; the path sklearn:diabetes names a table that scikit-learn ships.

    It has 442 patients, 10 measurements, and the progression of their disease after a year (Efron,
    Hastie, Johnstone and Tibshirani 2004, "Least angle regression").
    """

    def paths(self, split):
        return _diabetes_files() if getattr(self, split) == DIABETES else super().paths(split)

    def reads(self, root):
        return {split: what for split, what in super().reads(root).items() if getattr(self, split) != DIABETES}

    def records(self, split, root, bad):
        return _diabetes() if getattr(self, split) == DIABETES else super().records(split, root, bad)


@dataclasses.dataclass(frozen=True)
class TabularData(DataConfig):
    """Rows of numbers with named columns, some of which are predicted from the others.

    A batch holds features (B, F) float32; target (B, K) float32, or with `num_classes` label (B,)
    int32; weights (B,) float32. Features and targets have mean 0 and standard deviation 1 over the
    training rows. An evaluation batch also holds target_scale and target_mean (B, K), which convert
    a target back to its own unit. Labels are not scaled.
    """

    levels = (Metric("least_squares_rmse", "Least squares, RMSE", beside="rmse", level=True, label="linear"),)

    RENAMED: ClassVar = {"path": "source.train", "train": "source.train"} | dict.fromkeys(
        ("validation_path", "validation"), "source.validation"
    )

    compared: ClassVar = DataConfig.compared | {"features": "prepares", "group_by": "place"}
    cut: ClassVar = "validation_fraction"

    source: Source = Tables(train=DIABETES)
    "where the rows come from"
    target: tuple[str, ...] = ("progression",)
    "the columns that are predicted"
    features: tuple[str, ...] = ()
    "feature columns in this order; empty: all columns but the targets"
    num_classes: CountOrZero = 0
    "0: regression of numbers; else the single target is a label 0 .. num_classes - 1"
    group_by: str = ""
    """a column of numbers or texts; an evaluation also reports its metrics for each of its values;
    empty: none"""
    validation_fraction: ProperShare = 0.2
    """share of the training rows held out by a hash of their content, if the source has no
    validation split"""

    def __post_init__(self):
        check_fraction(self.validation_fraction)
        if not self.target or (self.num_classes and len(self.target) != 1):
            raise ValueError(
                f"data.target = {self.target!r}: {'one' if self.num_classes else 'at least one'} is needed"
            )
        if self.num_classes < 0 or self.num_classes == 1:
            raise ValueError(f"data.num_classes = {self.num_classes}; it must be 0 for numbers, or at least 2")

    def open(self, split: str) -> "TabularRows":
        table = read_split(self, split)
        log_skipped(split, table.skipped)
        train = table if split == "train" else read_split(self, "train")
        # Every split is scaled as the training rows, since the validation rows must not influence
        # the model.
        inputs, outputs = fit_scaling(train.features), fit_scaling(train.targets)
        rows = (inputs.standardise(table.features), table.targets, self.num_classes, outputs, table.skipped)
        names = {name: number for number, name in enumerate(self.groups() if split == "validation" else ())}
        groups = np.array([names[name] for name in table.groups], np.int32) if names else None
        return TabularRows(*rows, groups)

    def groups(self) -> tuple[str, ...]:
        column = read_split(self, "validation").groups
        return names_of(column, "data.group_by", self.group_by)

    def row(self) -> dict[str, Field]:
        features = Field((len(self.features),) if self.features else None)
        row = {"features": features} | per_row(["weights"], "float32")
        if self.group_by:
            row["group"] = Field((), "int32", evaluation=True)
        if self.num_classes:
            return row | per_row(["label"])
        targets = (len(self.target),)
        scaling = {name: Field(targets, evaluation=True) for name in ("target_scale", "target_mean")}
        return row | {"target": Field(targets)} | scaling

    def requirements(self) -> dict:
        train = read_split(self, "train")
        return {"feature_shape": train.features.shape[1:], "num_outputs": self.num_classes or train.targets.shape[1]}

    def label_column(self) -> str:
        return self.target[0] if self.num_classes else ""

    def baselines(self) -> dict[str, float]:
        """Return the root mean squared error of least squares, in the target's unit."""
        if self.num_classes:
            return {}
        train, validation = read_split(self, "train"), read_split(self, "validation")
        # A column of ones is the intercept. The fit is float64, because nearly dependent columns
        # would lose digits in float32.
        columns = [np.c_[t.features.astype(np.float64), np.ones(len(t.features))] for t in (train, validation)]
        solution = np.linalg.lstsq(columns[0], train.targets, rcond=None)[0]
        return {"least_squares_rmse": float(np.sqrt(np.mean((columns[1] @ solution - validation.targets) ** 2)))}

    def save_artifacts(self, folder: Path) -> None:
        """Write scaling.json: names, mean and scale of every column, which predictions need."""
        train = read_split(self, "train")
        columns = {"features": (train.names, train.features), "target": (self.target, train.targets)}
        scaling = {kind: {"names": list(names)} | fit_scaling(x).to_json() for kind, (names, x) in columns.items()}
        files.replace(folder / "scaling.json", json.dumps(scaling, indent=1) + "\n")


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The scaling of columns, mean and scale (columns,): standardized = (value - mean) / scale."""

    mean: np.ndarray
    scale: np.ndarray

    def standardise(self, values: np.ndarray) -> np.ndarray:
        return ((values - self.mean) / self.scale).astype(np.float32)

    def to_json(self) -> dict:
        return {"mean": self.mean.tolist(), "scale": self.scale.tolist()}


def fit_scaling(values: np.ndarray) -> Scaling:
    """Return mean and population standard deviation per column. A constant column has scale 1."""
    scale = values.std(axis=0)
    return Scaling(values.mean(axis=0), np.where(scale > 0, scale, 1.0))


@dataclasses.dataclass(frozen=True)
class TabularRows:
    """One split: features (N, F) float32, standardized; targets (N, K) float64, unscaled."""

    features: np.ndarray
    targets: np.ndarray
    num_classes: int
    scaling: Scaling
    skipped: list[tuple[str, str]]
    groups: np.ndarray | None = None  # (N,) int32: the groups of the validation rows, with `group_by`

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        out = {"features": self.features[indices], "weights": np.ones(len(indices), np.float32)}
        if self.groups is not None and noise is None:
            out["group"] = self.groups[indices]
        targets = self.targets[indices]
        if self.num_classes:
            return out | {"label": targets[:, 0].astype(np.int32)}
        out["target"] = self.scaling.standardise(targets)
        if noise is None:
            for name, value in (("target_scale", self.scaling.scale), ("target_mean", self.scaling.mean)):
                out[name] = np.tile(value.astype(np.float32), (len(indices), 1))
        return out


# ---------------------------------------------------------------- reading


@dataclasses.dataclass(frozen=True)
class Table:
    """The usable rows of a split before scaling.

    - features (N, F), targets (N, K): float64.
    - names: the feature columns.
    - skipped: (where, why) of the bad records.
    - groups: the group of each row, or ().
    """

    features: np.ndarray
    targets: np.ndarray
    names: tuple[str, ...]
    skipped: list[tuple[str, str]]
    groups: tuple[str, ...] = ()


def read_split(cfg: TabularData, split: str) -> Table:
    """Return the usable rows of a split.

    Raises ValueError for a missing file or column, or too many bad rows.
    """
    own = cfg.source.has("validation", cfg.root())
    read = split if own else "train"
    table = _read(cfg, read, cfg.source.fingerprint(read, cfg.root()))
    if own:
        return table
    # Rows are held out by their content, so the order of the file does not matter.
    rows = [f.tobytes() + t.tobytes() for f, t in zip(table.features, table.targets, strict=True)]
    mask = np.array(held_out(rows, cfg.validation_fraction)) == (split == "validation")
    groups = tuple(itertools.compress(table.groups, mask))
    return dataclasses.replace(table, features=table.features[mask], targets=table.targets[mask], groups=groups)


@functools.lru_cache(maxsize=4)
def _read(cfg: TabularData, split: str, _fingerprint: str) -> Table:
    """Read a split. The fingerprint is part of the cache's key, so changed files are read again."""
    # An array holds a number in 8 bytes, and a list of floats takes 32.
    bad, names, values, groups = BadRecords(cfg.max_bad_records), (), array.array("d"), []
    for where, record in cfg.source.records(split, cfg.root(), bad):
        record = {name.strip(): value for name, value in record.items()}
        names = names or _columns(cfg, list(record), where)
        reason, row = _numbers(record, names)
        reason = reason or (lacks(record, cfg.group_by) if cfg.group_by else "")
        # A float is in a range only if it is whole, so 1.5 is refused as well.
        if not reason and cfg.num_classes and row[-1] not in range(cfg.num_classes):
            label = record[cfg.target[0]]
            reason = f"label {label} is not in 0 .. {cfg.num_classes - 1} (data.num_classes)"
        if reason:
            bad.skip(where, reason)
        else:
            values.extend(row)
            groups += [str(record[cfg.group_by]).strip()] if cfg.group_by else []
    if not values:
        raise ValueError(f"data.source: the {split} split of {cfg.source} has no usable rows")
    rows = np.array(values).reshape(-1, len(names))
    features = len(names) - len(cfg.target)
    return Table(rows[:, :features], rows[:, features:], names[:features], bad.skipped, tuple(groups))


def _diabetes_files() -> list[Path]:
    found = importlib.util.find_spec("sklearn")
    if found is None:
        raise ValueError(
            f"data.source.train: {DIABETES!r} reads the package scikit-learn, which is not installed: uv sync --extra digits"
        )
    folder = Path(found.submodule_search_locations[0]) / "datasets/data"
    return [folder / "diabetes_data_raw.csv.gz", folder / "diabetes_target.csv.gz"]


def _diabetes() -> Records:
    files = _diabetes_files()
    with gzip.open(files[0], "rt") as measurements, gzip.open(files[1], "rt") as progression:
        for number, (row, target) in enumerate(zip(measurements, progression, strict=True), 1):
            cells = [*row.split(), target.strip()]
            yield f"{DIABETES} row {number}", dict(zip(DIABETES_COLUMNS, cells, strict=True))


def _columns(cfg: TabularData, header: list[str], where: str) -> tuple[str, ...]:
    """Return the names of the feature columns, followed by the targets."""
    for option, names in (("target", cfg.target), ("features", cfg.features), ("group_by", (cfg.group_by,))):
        for name in filter(None, names):
            if name not in header:
                raise ValueError(f"data.{option}: {where} has no column {name!r}{nearest(name, header)}")
    features = cfg.features or tuple(name for name in header if name not in cfg.target)
    if not features:
        raise ValueError(f"data.target = {cfg.target!r}: {where} has no other column to predict it from")
    return (*features, *cfg.target)


def _numbers(record: dict[str, Any], names: tuple[str, ...]) -> tuple[str, list[float]]:
    """Return ("", the numbers of these columns), or (what is wrong with the row, [])."""
    if missing := lacks(record, *names):
        return missing, []
    values = []
    for name in names:
        cell = record[name].strip() if isinstance(record[name], str) else record[name]
        try:
            values.append(float(cell))
        except (TypeError, ValueError):
            return f"column {name!r}: {cell!r} is not a number", []
        if not math.isfinite(values[-1]):
            return f"column {name!r}: {cell!r} is not finite", []
    return "", values
