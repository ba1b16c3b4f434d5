"""A run's folder: which run lives there, and what may change when it is continued."""

import contextlib
import logging
import logging.handlers
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from bigmodel_jax import config_file
from bigmodel_jax.config import Config, flat
from bigmodel_jax.core import processes

log = logging.getLogger("bigmodel_jax")

# What may differ when a run is continued: how long, where and how it is watched; not what is learned from what.
FREE = (
    *("train.steps", "train.log_every", "parallel", "eval", "checkpoint", "report", "data.cache_dir"),
    *("model.remat", "model.unroll", "model.attention", "objective.logits"),
)


def differences(old: Config, new: Config) -> dict[str, tuple]:
    """{"optim.lr": (old, new)} of the fields that make it another run."""
    a, b = flat(old), flat(new)
    return {
        name: (a.get(name), b.get(name))
        for name in a | b
        if a.get(name) != b.get(name) and not any(name == free or name.startswith(f"{free}.") for free in FREE)
    }


def check(run_dir: Path, config: Config) -> None:
    """Writes nothing. ValueError if another run lives in the folder, naming what differs, or if it cannot be made."""
    path = run_dir / "config.json"
    parent = next(p for p in (run_dir, *run_dir.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        wrong = "is not a folder" if not parent.is_dir() else "cannot be written"
        raise ValueError(f"run_dir = {str(run_dir)!r}: {parent} {wrong}; give another --run_dir")
    if path.is_file():
        changed = differences(config_file.load(path), config)
        if changed:
            shown = "; ".join(f"{name} was {a!r}, now {b!r}" for name, (a, b) in list(changed.items())[:4])
            raise ValueError(
                f"run_dir = {str(run_dir)!r} holds a run of another config: {shown}; give another --run_dir"
            )


def claim(run_dir: Path, config: Config) -> None:
    """Makes the folder and writes what the run is, in process 0; `check` comes first."""
    if not processes.first():
        return
    try:
        for name in ("checkpoints", "samples", "plots"):
            (run_dir / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"run_dir = {str(run_dir)!r} cannot be made: {error.strerror}; give another --run_dir"
        ) from error
    config_file.save(config, run_dir / "config.json")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    null, log.propagate = logging.NullHandler(), False
    log.addHandler(null)
    try:
        yield
    finally:
        log.removeHandler(null)
        log.propagate = True


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[Callable[[], None]]:
    """What is logged below "bigmodel_jax" goes to this file; warnings also to stderr, and nothing anywhere else.

    Yields the function that opens the file; records are kept until then, so that a run that cannot start writes nothing.
    Of several processes the first one alone logs.
    """
    if not processes.first():
        with _silent():
            yield lambda: None
        return
    kept = logging.handlers.MemoryHandler(capacity=1 << 20, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    shown = logging.StreamHandler()
    shown.setLevel(logging.WARNING)
    file = logging.FileHandler(path, delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def start() -> None:
        kept.setTarget(file)
        kept.flush()
        log.removeHandler(kept)
        log.addHandler(file)

    log.addHandler(kept)
    log.addHandler(shown)
    log.setLevel(logging.INFO)
    log.propagate = False
    log.info("packages imported")
    try:
        yield start
    finally:
        log.propagate = True
        for handler in (kept, shown, file):
            log.removeHandler(handler)
            handler.close()
