"""Checks which run a folder holds, and which fields may change when that run is continued."""

import contextlib
import logging
import logging.handlers
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bigmodel_jax import config_file
from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import Config, flat, override
from bigmodel_jax.core import mirror, processes, user_code
from bigmodel_jax.training import holder, provenance

log = logging.getLogger("bigmodel_jax")

# Fields that may change when a run is continued. They concern duration, devices, monitoring and the
# way of computing, and not what is learned from which data.
FREE = (
    *(
        "train.steps",
        "train.epochs",
        "train.log_every",
        "train.max_skipped",
        "train.max_step_seconds",
        "train.profile",
        "parallel",
        "eval",
        "checkpoint",
        "report",
        "data.cache_dir",
        "data.group_by",
    ),
    "objective.logits",
)


def differences(old: Config, new: Config) -> dict[str, tuple]:
    """{field: (old, new)} for the changed fields that make it another run."""
    a, b = flat(old), flat(new)
    return {name: (a.get(name), b.get(name)) for name in a | b if a.get(name) != b.get(name) and not _free(name)}


def _free(name: str) -> bool:
    """Whether a field may change: in FREE, or in a `compute` config of the model or its towers."""
    computing = name.startswith("model.") and "compute" in name.split(".")
    return computing or _below(name, FREE)


def _below(name: str, parts: Sequence[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def load(path: str | Path, overrides: Sequence[str] = (), *, runs_code: bool = True) -> Config:
    """As `config_file.load`; if config.json is missing or damaged, the newest
    checkpoint's config.
    """
    checkpoints = mirror.origin(Path(path) / "checkpoints")
    try:
        return config_file.load(path, overrides, runs_code=runs_code)
    except config_file.Unreadable as error:
        if not checkpoints.is_dir():
            raise
        try:
            found = config_file.from_json(store.read_config(checkpoints), Path(path))
        except ValueError:
            raise error from None
        if runs_code:
            config_file.trust_functions(found, Path(path))
        log.warning("%s; the config of the newest checkpoint is used", error)
        return override(found, overrides, prog=f"launch.py train {path}") if overrides else found


def check(run_dir: Path, config: Config, step: int = 0) -> None:
    """Raises ValueError if the folder holds another run or cannot be made. Writes nothing.

    `step` is the step that the run has reached, if it is beyond the newest checkpoint in the
    folder.
    """
    path = run_dir / "config.json"
    parent = next(p for p in (run_dir, *run_dir.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        wrong = "is not a folder" if not parent.is_dir() else "cannot be written"
        raise ValueError(f"run_dir = {str(run_dir)!r}: {parent} {wrong}; give another --run_dir")
    saves = [p.name for p in mirror.origin(run_dir / "checkpoints").glob("[0-9]*")]
    if path.is_file() or saves:
        before = load(run_dir, runs_code=False)
        saved = [int(name) for name in saves if name.isdecimal()]
        # Stages of a mixture that lie in the run's future may still change.
        ahead = config.data.ahead(before.data, max([step, *saved]))
        changed = {n: v for n, v in differences(before, config).items() if not _below(n, ahead)}
        resumes = bool(saved)
        # provenance.check decides about the fields that are compared by content.
        by_content = provenance.compared(run_dir, config) if resumes else set()
        changed = {n: values for n, values in changed.items() if n not in by_content and not user_code.moved(*values)}
        if changed:
            shown = "; ".join(f"{name} was {a!r}, now {b!r}" for name, (a, b) in list(changed.items())[:4])
            raise ValueError(
                f"run_dir = {str(run_dir)!r} holds a run of another config: {shown}; give another --run_dir; with "
                f"--train.init_from {run_dir}@STEP it starts from these weights, with --train.init_state all from the "
                "optimizer's state and the step, too"
            )


def claim(run_dir: Path, config: Config, hold: holder.Holder, saves: store.Store, last: int) -> None:
    """Makes the folder, takes it and writes the config, in process 0, after `check`.

    Another process may have started since `check`. Only the process that has taken the folder
    writes there, so it repeats the checks. `last` is as in `check_still`.
    """
    if not processes.first():
        return
    try:
        for name in ("checkpoints", "samples", "plots"):
            (run_dir / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"run_dir = {str(run_dir)!r} cannot be made: {error.strerror}; give another --run_dir"
        ) from error
    hold.take()
    check_still(saves, last)
    check(run_dir, config)
    config_file.save(config, run_dir / "config.json")


def release(run_dir: Path) -> None:
    """Frees the folder, in process 0, if the run was refused before its first save."""
    if processes.first() and not any(mirror.origin(run_dir / "checkpoints").glob("[0-9]*")):
        (run_dir / "config.json").unlink(missing_ok=True)


class _LogFile(logging.FileHandler):
    """A log file that prints one warning if it cannot be written. The run goes on."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.failed:
            self.failed = True
            print(f"warning: {self.baseFilename}: {error.strerror}; log records are lost", file=sys.stderr)

    def close(self) -> None:
        try:
            super().close()
        except OSError:
            assert self.failed  # the failure was printed when the record could not be written

    failed = False


def check_still(saves: store.Store, last: int) -> None:
    """Raises ValueError if there is a checkpoint newer than step `last` (-1: none).

    Another process has then trained here. An older checkpoint is no error: step `last` may have
    been found damaged since.
    """
    now = store.latest_step(saves)
    if now is not None and now > last:
        raise ValueError(
            f"run_dir = {str(saves.directory.parent)!r}: another process has trained there since this one started; "
            "the same command resumes the run"
        )


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
    """Sends the log records below "bigmodel_jax" to this file, and warnings also to stderr.

    Yields the function that opens the file. Records are kept until then, so that a run that cannot
    start writes nothing. Only the first process logs.
    """
    if not processes.first():
        with _silent():
            yield lambda: None
        return
    # flushLevel is above every level, so that no record of a refused start reaches the file.
    kept = logging.handlers.MemoryHandler(capacity=1 << 20, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    shown = logging.StreamHandler()
    shown.setLevel(logging.WARNING)
    file = _LogFile(path, delay=True)
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
