"""Read a run's folder: config, environment, samples, and metrics as series.

Series run over steps, seconds or tokens.
"""

import dataclasses
import hashlib
import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_jax.core import formats
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.data.corpus.kept_cards import FOLDER
from bigmodel_jax.report import declared, goodput, spike_records
from bigmodel_jax.report.answers import Answers, read_answers
from bigmodel_jax.report.environment import ENVIRONMENT_FILE
from bigmodel_jax.report.writers import read_metrics

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run left in its folder.

    samples, pictures: (file name, text or PNG), ordered by the numbers in the names. labels: class
    names, if the run has classes. tokenizer: SHA-256 of its tokenizer.json, or "". known:
    declarations of its metrics by key. split: where its wall time went; None without a record.
    """

    path: Path
    config: dict
    environment: dict
    metrics: list[dict]
    samples: list[tuple[str, str]]
    pictures: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)
    labels: list[str] = dataclasses.field(default_factory=list)
    tokenizer: str = ""
    known: declared.Known = dataclasses.field(default_factory=dict)
    counts: str = ""  # what a step's loss is a mean over: "tokens", "examples", or "" if unknown
    split: goodput.Split | None = None
    answers: Answers = dataclasses.field(default_factory=list)  # answers to prompts, as read by report/answers.py
    compared: dict[str, str] = dataclasses.field(
        default_factory=dict
    )  # {data field: its role in comparisons of runs}, as declared.compared returns it
    cards: list[dict] = dataclasses.field(default_factory=list)  # cards of the corpora that it trained on
    spikes: list[dict] = dataclasses.field(default_factory=list)  # loss spikes, as read by report/spike_records.py

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.path.name

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of the records that have a finite number under `key`."""
        points = [(r["step"], r[key]) for r in self.metrics if isinstance(r.get(key), int | float)]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return np.asarray(steps, float), np.asarray(values, float)

    def last(self, key: str) -> Any:
        """The newest non-null value under `key`; None if there is none."""
        return next((r[key] for r in reversed(self.metrics) if r.get(key) is not None), None)

    def names(self) -> list[str]:
        """Keys with a finite number in any record, in order of appearance."""
        found = dict.fromkeys(k for r in self.metrics for k, v in r.items() if isinstance(v, int | float))
        return [name for name in found if name != "step"]

    def metric(self, key: str) -> Metric:
        """The declaration of the metric under `key`."""
        return declared.find(self.known, key)

    def label(self, number: int) -> str:
        """A class's name, or its number as text."""
        return self.labels[number] if number < len(self.labels) else str(number)

    def elapsed(self, steps: np.ndarray) -> np.ndarray:
        """Seconds of training at each of `steps`.

        step_seconds is summed. All steps between two records count with the later record's value.
        """
        at, seconds = self.series("step_seconds")
        return _accumulate(steps, at, seconds)

    def tokens(self, steps: np.ndarray) -> np.ndarray:
        """Tokens seen at each of `steps`."""
        # Tokens are the product of both keys, so a record counts only if it has both.
        records = [r for r in self.metrics if r.get("tokens_per_second") and r.get("step_seconds")]
        at = np.asarray([r["step"] for r in records], float)
        return _accumulate(steps, at, np.asarray([r["tokens_per_second"] * r["step_seconds"] for r in records]))


def load_run(run_dir: Path) -> Run:
    """Read a run's folder.

    Raises ValueError without metrics.jsonl. Other missing files leave their fields empty.
    """
    # "." has no name, and the run's name is that of its folder.
    path = Path(run_dir).resolve()
    metrics = read_metrics(run_dir)
    samples = [
        (f.name, f.read_text(encoding="utf-8", errors="replace"))
        for f in sorted(path.glob("samples/*.txt"), key=_by_number)
    ]
    pictures = [(f.name, f.read_bytes()) for f in sorted(path.glob("samples/*.png"), key=_by_number)]
    labels = _json(path / "vocabulary.json").get("labels", [])
    file = path / "tokenizer.json"
    tokenizer = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    config = formats.opened(_json(path / "config.json"), path / "config.json")
    environment = _json(path / ENVIRONMENT_FILE)
    known, counts, compared = declared.read(path, config)
    split = goodput.read(path)
    facts = (labels, tokenizer, known, counts, split, read_answers(path), compared)
    cards = [card for file in sorted(path.glob(f"{FOLDER}/*.json")) if (card := _json(file))]
    return Run(path, config, environment, metrics, samples, pictures, *facts, cards, spike_records.read(path))


def metric_of(runs: list[Run], key: str) -> Metric:
    """The declaration of the metric under `key`, from the first run that has one."""
    # Later entries replace earlier ones, so the reversed order lets the first run win.
    return declared.find({k: m for run in reversed(runs) for k, m in run.known.items()}, key)


def levels(run: Run, name: str) -> dict[str, Metric]:
    """Recorded levels (values that simple methods reach) of this metric, by key."""
    keys = (key for key in run.names() if run.metric(key).level)
    return {key: run.metric(key) for key in keys if run.metric(key).beside == name and run.last(key) is not None}


def headline(run: Run) -> dict[str, float]:
    """A run's summary figures by name: its newest evaluation, and medians over its steps."""
    last_step = max((r["step"] for r in run.metrics), default=0)
    rates = {k: run.series(k)[1] for k in ("tokens_per_second", "mfu", "step_seconds", "data_wait_seconds")}
    figures = {"step": last_step, "train_loss": run.last("loss")}
    figures |= {name: run.last(name) for name in run.names() if name.startswith("eval/")}
    if len(rates["step_seconds"]):
        figures["wall_seconds"] = float(run.elapsed(np.asarray([last_step]))[0])
        # The median leaves out the compilation, which the first record includes.
        figures |= {
            k: float(np.median(rates[k])) for k in ("step_seconds", "tokens_per_second", "mfu") if len(rates[k])
        }
        if len(rates["data_wait_seconds"]):
            # The share is a ratio of sums, so one long wait counts with its whole length.
            figures["data_wait_share"] = float(rates["data_wait_seconds"].sum() / rates["step_seconds"].sum())
    if run.split is not None:
        figures["goodput"] = run.split.goodput
    return {k: v for k, v in figures.items() if v is not None and math.isfinite(v)}


def confusion(run: Run) -> np.ndarray | None:
    """Counts (C, C) of [label, prediction] in the newest evaluation; None without any."""
    matrix = run.last("eval/confusion")
    return np.asarray(matrix, float) if matrix else None


def unit(run: Run) -> str:
    """What the run's throughput counts: "token" or "example"."""
    if run.counts:
        return run.counts.removesuffix("s")
    loss = run.metric("eval/loss").unit
    of_examples = "token" not in loss if loss else confusion(run) is not None
    return "example" if of_examples else "token"


def loss_unit(run: Run) -> str:
    """The unit of the run's loss, such as "per token"."""
    return run.metric("eval/loss").unit or f"per {unit(run)}"


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a nested config to {dotted name: value}. A list is one value."""
    if not isinstance(node, dict):
        return {prefix: node}
    items = (flatten(value, f"{prefix}.{key}" if prefix else key) for key, value in node.items())
    return {name: value for flat in items for name, value in flat.items()}


def config_diff(runs: list[Run]) -> dict[str, list[Any]]:
    """{dotted name: value in each run} of the fields that differ; None where a run
    lacks the field.
    """
    flat = [flatten(run.config) for run in runs]
    names = dict.fromkeys(name for config in flat for name in config)
    values = {name: [config.get(name) for config in flat] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def _accumulate(steps: np.ndarray, at: np.ndarray, per_step: np.ndarray) -> np.ndarray:
    """The sum of a per-step quantity from step 0 to each of `steps`; NaN without records."""
    if not len(at):
        return np.full(len(steps), np.nan)
    # A record's per-step value holds for all steps since the record before.
    totals = np.concatenate([[0.0], np.cumsum(np.diff(at, prepend=0.0) * per_step)])
    return np.interp(steps, np.concatenate([[0.0], at]), totals)


def _by_number(path: Path) -> list:
    """Sort key that puts step_900 before step_1000."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _json(path: Path) -> dict:
    """The JSON object in a file. It is empty if the run ended before it wrote the file."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):  # the report page works without it
        log.warning("%s is not a JSON object and is left out", path)
        return {}
    return found
