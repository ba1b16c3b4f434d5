"""A run's folder: which run lives there, and what may change when it is continued."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from bigmodel_jax import config_file
from bigmodel_jax.config import Config, flat

log = logging.getLogger("bigmodel_jax")

# What may differ when a run is continued: how long, where and how it is watched; not what is learned from what.
FREE = ("train.steps", "train.log_every", "parallel", "eval", "checkpoint", "report", "data.cache_dir")


def differences(old: Config, new: Config) -> dict[str, tuple]:
    """{"optim.lr": (old, new)} of the fields that make it another run."""
    a, b = flat(old), flat(new)
    return {
        name: (a.get(name), b.get(name))
        for name in a | b
        if a.get(name) != b.get(name) and not any(name == free or name.startswith(f"{free}.") for free in FREE)
    }


def claim(run_dir: Path, config: Config) -> None:
    """Makes the folder this config's, or finds that it is; ValueError if another run lives there, naming what differs."""
    path = run_dir / "config.json"
    if path.is_file():
        changed = differences(config_file.load(path), config)
        if changed:
            shown = "; ".join(f"{name} was {a!r}, now {b!r}" for name, (a, b) in list(changed.items())[:4])
            raise ValueError(
                f"run_dir = {str(run_dir)!r} holds a run of another config: {shown}; give another --run_dir"
            )
    run_dir.mkdir(parents=True, exist_ok=True)
    if not os.access(run_dir, os.W_OK):
        raise PermissionError(13, "the run's folder cannot be written", str(run_dir))
    for name in ("checkpoints", "samples", "plots"):
        (run_dir / name).mkdir(exist_ok=True)
    config_file.save(config, path)


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """What is logged below "bigmodel_jax" goes to this file; warnings also to stderr, and nothing anywhere else."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    shown = logging.StreamHandler()
    shown.setLevel(logging.WARNING)
    log.addHandler(handler)
    log.addHandler(shown)
    log.setLevel(logging.INFO)
    log.propagate = False
    log.info("packages imported")
    try:
        yield
    finally:
        log.propagate = True
        log.removeHandler(handler)
        log.removeHandler(shown)
        handler.close()
