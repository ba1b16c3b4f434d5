"""Which of a run's checkpoints is meant: the newest, one by its step, or the best by the metric that ranks them."""

import json
from pathlib import Path

from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import CheckpointConfig
from bigmodel_jax.core import mirror

BEST = "best"


def find(run_dir: Path, cfg: CheckpointConfig, which: str, said: str = "") -> int | None:
    """The step that `which` names: "20", or "best" by `cfg.best_metric`; None for "", the newest good checkpoint.

    ValueError, one line with the steps that are kept, where that one is not. said: what the user wrote.
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
    """(run's folder, which checkpoint) of FOLDER, FOLDER@STEP or FOLDER@best; a folder may have an @ in its name."""
    folder, at, which = source.rpartition("@")
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
    return max(ranked, key=lambda step: (ranked[step], step))  # of two equals the newer, which Orbax keeps as well


def _merit(folder: Path, cfg: CheckpointConfig) -> float | None:
    """Its figure, the higher the better; None where the save was not evaluated, or the figure cannot be read."""
    try:
        value = json.loads((folder / "metrics" / "metrics").read_bytes()).get(cfg.best_metric)
    except (OSError, ValueError, AttributeError):
        return None
    if not isinstance(value, (int, float)) or value != value:
        return None
    return value if cfg.best_mode == "max" else -value
