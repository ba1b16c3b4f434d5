"""Write metrics: always to metrics.jsonl, by default to TensorBoard, on request to W&B
and MLflow.
"""

import contextlib
import importlib
import itertools
import json
import logging
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigmodel_jax.config import ReportConfig
from bigmodel_jax.core import files, processes
from bigmodel_jax.report.declared import Known
from bigmodel_jax.report.tensorboard import Board

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
SUMS_FILE = "metrics.crc32"  # one checksum per line of metrics.jsonl, so that a resumed run can check its records


class MetricsWriter:
    """Writes one JSON object per line to `run_dir`/metrics.jsonl, and scalars to tensorboard/.

    Each line is flushed. from_step: the step from which the run starts or resumes. Records of later
    steps are deleted, since those steps are repeated. Raises OSError naming the file.
    """

    def __init__(self, run_dir: Path, *, from_step: int = 0, tensorboard: bool = True):
        self._path = Path(run_dir) / METRICS_FILE
        self._path.parent.mkdir(parents=True, exist_ok=True)
        damaged: list[str] = []
        kept = [r for r in _parse(self._path, damaged) if r["step"] <= from_step] if self._path.exists() else []
        if damaged:
            log.warning("%s; these lines are not records and are skipped", "; ".join(damaged[:3]))
        _warn_of_gap(self._path, [r["step"] for r in kept], from_step)
        # The old checksums are compared here, because they are replaced below.
        _warn_of_changes(self._path)
        sums = self._path.with_name(SUMS_FILE)
        lines = [_line(r) for r in kept]
        # If the process is killed between the two writes, there are fewer checksums than lines.
        # That is not reported as damage.
        files.replace(sums, "".join(map(_sum, lines)))
        if self._path.exists():
            files.replace(self._path, "".join(lines))
        # close() closes both files.
        self._file = open(self._path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        self._sums = open(sums, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        self._board = Board(self._path.parent / "tensorboard", from_step + 1) if tensorboard else None

    def write(self, step: int, values: dict[str, float | list]) -> None:
        """Append one record. Floats that are not finite become null.

        TensorBoard gets only the finite numbers.
        """
        record = {"step": int(step)} | {k: plain(v) for k, v in values.items()}
        line = _line(record)
        with files.named(self._path):
            self._file.write(line)
            self._sums.write(_sum(line))
        if self._board is not None:
            self._board.write(record["step"], _scalars(record))

    def close(self) -> None:
        """Close all files."""
        self._file.close()
        self._sums.close()
        if self._board is not None:
            self._board.close()


class Writers:
    """Several writers that are used like one."""

    def __init__(self, *writers: Any):
        self._writers = writers

    def write(self, step: int, values: dict[str, float | list]) -> None:
        for writer in self._writers:
            writer.write(step, values)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def open_writers(
    report: ReportConfig, run_dir: Path, *, from_step: int = 0, config: dict | None = None, known: Known | None = None
) -> Writers:
    """Open all writers that `report` asks for.

    config: plain JSON that W&B and MLflow show as the run's settings. known: metric declarations by
    key. On every process but the first, the returned `Writers` write nothing. Raises ValueError
    with the install command, before anything is written, if a tracker's package is missing.
    """
    if not processes.first():
        return Writers()
    run_dir = Path(run_dir)
    trackers = [TRACKERS[name](run_dir, config or {}, known or {}) for name in report.trackers]
    return Writers(MetricsWriter(run_dir, from_step=from_step, tensorboard=report.tensorboard), *trackers)


def _warn_of_gap(path: Path, steps: list[int], from_step: int) -> None:
    """Log a warning if steps that the run has taken have no record.

    Then the file was cut or deleted.
    """
    last = max(steps, default=0)
    usual = max((b - a for a, b in itertools.pairwise(sorted({0, *steps}))), default=0)
    if from_step - last > usual:
        log.warning("%s: no records of steps %d to %d, which the run has taken", path, last + 1, from_step)


def _warn_of_changes(path: Path) -> None:
    """Log a warning on the first line that the run did not write in this form.

    The cause may be a flipped bit, a missing line, a cut or an edit. A kill may lose the last
    line's checksum, and runs of older versions have no checksums.
    """
    sums = path.with_name(SUMS_FILE)
    if not path.exists() or not sums.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    written = sums.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    changed = [n for n, (line, there) in enumerate(zip(lines, written, strict=False), 1) if _sum(line) != there]
    if changed:
        more = f"; so do {len(changed) - 1} lines below it" if len(changed) > 1 else ""
        log.warning("%s:%d: the line differs from what the run wrote (%s)%s", path, changed[0], SUMS_FILE, more)
    elif len(written) > len(lines):
        log.warning("%s: the last records that the run wrote are missing: %d", path, len(written) - len(lines))


def read_metrics(run_dir: Path) -> list[dict]:
    """A run's records in the order written.

    A last line cut short by a kill is skipped. Raises ValueError without metrics.jsonl.
    """
    path = Path(run_dir) / METRICS_FILE
    try:
        return _parse(path)
    except FileNotFoundError as error:
        raise ValueError(f"{run_dir}: not a run's folder, it has no {METRICS_FILE}") from error


def _parse(path: Path, damaged: list[str] | None = None) -> list[dict]:
    """The records of a file.

    Messages on damaged lines are added to `damaged`. Without it the first one is raised.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records, wrong = [], []
    for number, line in enumerate(lines, 1):
        record = _record(line)
        if record is not None:
            records.append(record)
        # A kill may cut the last line short, so that line is never called damaged.
        elif number < len(lines):
            wrong.append(f"{path}:{number}: not a record, a JSON object with a step: {line[:60]!r}")
    if damaged is not None:
        damaged.extend(wrong)
    elif wrong:
        raise ValueError(wrong[0])
    return records


def _record(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(record, dict) and isinstance(record.get("step"), int) and 0 <= record["step"] < 2**63
    return record if known else None


def _line(record: dict) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _sum(line: str) -> str:
    return f"{zlib.crc32(line.encode()):08x}\n"


def plain(value: Any) -> Any:
    """Numbers, arrays and nested lists as JSON values; NaN and infinities become null."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(record: dict) -> dict[str, float]:
    return {k: v for k, v in record.items() if k != "step" and isinstance(v, int | float)}


class WandbTracker:
    """Sends scalars to Weights & Biases. A resumed run continues under its folder's name.

    With WANDB_MODE=offline they stay in the folder.
    """

    def __init__(self, run_dir: Path, config: dict, known: Known):
        wandb = _import("wandb")
        run_dir.mkdir(parents=True, exist_ok=True)
        with _one_line("wandb", wandb.Error):
            self._run = wandb.init(name=run_dir.name, id=run_dir.name, dir=str(run_dir), config=config, resume="allow")
            for key, metric in known.items():  # W&B's summary then shows the best value, not the last
                if metric.better:
                    self._run.define_metric(key, summary="min" if metric.better == "less" else "max")

    def write(self, step: int, values: dict[str, float | list]) -> None:
        self._run.log(_scalars({k: plain(v) for k, v in values.items()}), step=int(step))

    def close(self) -> None:
        self._run.finish()


class MlflowTracker:
    """Sends scalars to MLflow: to MLFLOW_TRACKING_URI if it is set, else to RUN/mlflow/.

    `mlflow ui --backend-store-uri sqlite:///RUN/mlflow/mlflow.db` shows the latter. The run's
    folder keeps the id of the MLflow run, so a resumed run continues that MLflow run. MLflow's
    table of runs shows only the last values. So "best/KEY" holds the best value of each declared
    metric.
    """

    def __init__(self, run_dir: Path, config: dict, known: Known):
        self._mlflow = _import("mlflow")
        kept = run_dir / "mlflow_run_id"
        with _one_line("mlflow", self._mlflow.exceptions.MlflowException):
            self._own = "MLFLOW_TRACKING_URI" not in os.environ
            if self._own:
                self._keep_in(run_dir.absolute() / "mlflow")
            run_id = kept.read_text() if kept.is_file() else None
            run = self._mlflow.start_run(run_id=run_id, run_name=run_dir.name)
            self._mlflow.log_dict(config, "config.json")
        # MLflow returns the values of a run that is resumed, so the best of them go on.
        self._known, self._best = known, dict(run.data.metrics)
        run_dir.mkdir(parents=True, exist_ok=True)
        files.replace(kept, run.info.run_id)

    def write(self, step: int, values: dict[str, float | list]) -> None:
        scalars = _scalars({k: plain(v) for k, v in values.items()})
        self._mlflow.log_metrics(scalars | self._best_of(scalars), step=int(step))

    def close(self) -> None:
        self._mlflow.end_run()
        if self._own:  # MLflow sets this variable, and the next run would read it
            self._mlflow.set_tracking_uri(None)
            os.environ.pop("MLFLOW_TRACKING_URI", None)

    def _best_of(self, scalars: dict[str, float]) -> dict[str, float]:
        """The best value so far of each metric in `scalars` that has a better direction."""
        found = {}
        for key in scalars.keys() & self._known.keys():
            if better := self._known[key].better:
                best, value = f"best/{key}", scalars[key]
                found[best] = (min if better == "less" else max)(value, self._best.get(best, value))
        self._best |= found
        return found

    def _keep_in(self, folder: Path) -> None:
        """Keep the database and the artifacts in `folder`.

        MLflow's default for both is the folder in which the process was started.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        name = folder.parent.name
        if self._mlflow.get_experiment_by_name(name) is None:
            self._mlflow.create_experiment(name, artifact_location=(folder / "artifacts").as_uri())
        self._mlflow.set_experiment(name)


TRACKERS = {"wandb": WandbTracker, "mlflow": MlflowTracker}


def _import(package: str):
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"report.trackers={package}: the package is not installed: uv sync --extra {package}"
        ) from error


@contextlib.contextmanager
def _one_line(name: str, kind: type[Exception]) -> Iterator[None]:
    """Turn a tracker's exception (no key, no server) into a one-line ValueError."""
    try:
        yield
    except kind as error:
        raise ValueError(f"report.trackers={name}: {str(error).strip().splitlines()[0]}") from error
