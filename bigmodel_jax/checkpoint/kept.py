"""Finds the checkpoint that a user means: the newest, one by its step, or the best by its
metric."""

import json
from pathlib import Path

from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import CheckpointConfig
from bigmodel_jax.core import mirror

BEST = "best"


def find(run_dir: Path, cfg: CheckpointConfig, which: str, said: str = "") -> int | None:
    """The step that `which` names: "20", or "best" by `cfg.best_metric`; None (the newest) for "".

    said: what the user typed, for the message. Raises ValueError, with the steps that are kept, if
    the step is not among them.
    """
    if not which:
        return None
    said = said or f"--step {which}"
    saves = store.open_store(run_dir / "checkpoints", cfg)
    kept = store.steps(saves)
    listed = f"{run_dir} holds {'step ' if len(kept) == 1 else 'steps ' if kept else ''}{_listed(kept)}"
    if which == BEST:
        return _best(saves.directory, cfg, kept, f"{said}: {listed}")
    if not which.isdecimal():
        raise ValueError(f"{said}: it must be a step or {BEST!r}; {listed}")
    if int(which) not in kept:
        raise ValueError(f"{said}: that step is not kept; {listed}")
    return int(which)


def split(source: str) -> tuple[Path, str]:
    """(folder, checkpoint) of FOLDER, FOLDER@STEP or FOLDER@best.

    A folder's name may contain an @.
    """
    folder, at, which = source.rpartition("@")
    # A folder whose name has an @ takes precedence.
    if not at or not folder or mirror.folder(source).is_dir():
        folder, which = source, ""
    return mirror.fetched(folder), which


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"


def _best(directory: Path, cfg: CheckpointConfig, kept: list[int], said: str) -> int:
    if not cfg.best_metric:
        raise ValueError(f"{said}, and checkpoint.best_metric is empty, so that none is the best; give a step")
    ranked = {step: merit for step in kept if (merit := _merit(directory / str(step), cfg)) is not None}
    if not ranked:
        raise ValueError(f"{said}, none of them evaluated by checkpoint.best_metric = {cfg.best_metric!r}; give a step")
    return max(ranked, key=lambda step: (ranked[step], step))  # of equal saves, the newest is kept, as in Orbax


def _merit(folder: Path, cfg: CheckpointConfig) -> float | None:
    """The metric of a save, signed so that higher is better; None if the save has no readable
    metric.
    """
    try:
        value = json.loads((folder / "metrics" / "metrics").read_bytes()).get(cfg.best_metric)
    except (OSError, ValueError, AttributeError):
        return None
    # NaN is the only number that differs from itself.
    if not isinstance(value, (int, float)) or value != value:
        return None
    return value if cfg.best_mode == "max" else -value
