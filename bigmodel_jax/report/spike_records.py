"""The loss spikes of a run: spikes.jsonl in its folder, one JSON object per line.

Keys: step, loss, grad_norm, deviations, action ("skip" or "rollback"), back_to (a step or null),
batches (how many batches the run had consumed).
"""

import json
import logging
from pathlib import Path

from bigmodel_jax.core import files, processes
from bigmodel_jax.report.writers import plain

log = logging.getLogger(__name__)

FILE = "spikes.jsonl"


def read(run_dir: Path) -> list[dict]:
    """The spikes in order of time. Damaged lines are skipped."""
    path = Path(run_dir) / FILE
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return [record for line in lines if (record := _record(line))]


def drop_after(run_dir: Path, batches: int) -> None:
    """Delete the spikes that came after the first `batches` batches.

    A run that resumes at that batch consumes the later batches again.
    """
    records = read(run_dir)
    # The batches are compared instead of the steps, because a rollback sets the step back and goes
    # on with later batches.
    kept = [record for record in records if record["batches"] <= batches]
    # An unchanged file is not rewritten, because most resumptions drop nothing.
    if processes.first() and kept != records:
        files.replace(Path(run_dir) / FILE, "".join(json.dumps(record) + "\n" for record in kept))


def add(run_dir: Path, record: dict) -> None:
    """Append a spike. If that fails, a warning is logged and the run goes on."""
    if not processes.first():
        return
    line = json.dumps({name: plain(value) for name, value in record.items()}, allow_nan=False)
    try:
        with open(Path(run_dir) / FILE, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        log.warning("%s: %s; a spike is not recorded", Path(run_dir) / FILE, error.strerror)


def _record(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not all(isinstance(record.get(n), int) for n in ("step", "batches")):
        return None
    numbers = all(isinstance(record.get(name), int | float) for name in ("loss", "grad_norm", "deviations"))
    return record if numbers and isinstance(record.get("back_to"), int | None) else None
