"""A run's folder read back: config, environment, samples, and its metrics as series over steps, seconds and tokens."""

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
    """What a run left behind; `samples` and `pictures` are (file name, text or PNG) in the order of their names' numbers;
    `labels` are the names of its classes, empty where it has none; `tokenizer` is a digest, empty where it has none;
    `split` says where its wall time went, None where it has no record of that."""

    path: Path
    config: dict
    environment: dict
    metrics: list[dict]
    samples: list[tuple[str, str]]
    pictures: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)
    labels: list[str] = dataclasses.field(default_factory=list)
    tokenizer: str = ""
    known: declared.Known = dataclasses.field(default_factory=dict)
    counts: str = ""  # what a step's loss is a mean over: "tokens" or "examples"; "" where the folder does not say
    split: goodput.Split | None = None
    answers: Answers = dataclasses.field(
        default_factory=list
    )  # to prompts, with rewards, as report/answers.py reads them
    compared: dict[str, str] = dataclasses.field(
        default_factory=dict
    )  # what the fields of its data are to a comparison
    cards: list[dict] = dataclasses.field(default_factory=list)  # of the corpora that it trained on
    spikes: list[dict] = dataclasses.field(default_factory=list)  # as report/spike_records.py reads them

    @property
    def name(self) -> str:
        return self.path.name

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of the records that have a finite number under `key`."""
        points = [(r["step"], r[key]) for r in self.metrics if isinstance(r.get(key), int | float)]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return np.asarray(steps, float), np.asarray(values, float)

    def last(self, key: str) -> Any:
        """The newest value under `key` that is not null; None where there is none."""
        return next((r[key] for r in reversed(self.metrics) if r.get(key) is not None), None)

    def names(self) -> list[str]:
        """The keys under which a finite number was ever recorded, in the order of their appearance."""
        found = dict.fromkeys(k for r in self.metrics for k, v in r.items() if isinstance(v, int | float))
        return [name for name in found if name != "step"]

    def metric(self, key: str) -> Metric:
        """What the number under `key` is."""
        return declared.find(self.known, key)

    def label(self, number: int) -> str:
        """A class's name, or its number."""
        return self.labels[number] if number < len(self.labels) else str(number)

    def elapsed(self, steps: np.ndarray) -> np.ndarray:
        """Training seconds at each of `steps`: step_seconds summed, the steps between two records at the later's."""
        at, seconds = self.series("step_seconds")
        return _accumulate(steps, at, seconds)

    def tokens(self, steps: np.ndarray) -> np.ndarray:
        """Tokens seen at each of `steps`."""
        records = [r for r in self.metrics if r.get("tokens_per_second") and r.get("step_seconds")]
        at = np.asarray([r["step"] for r in records], float)
        return _accumulate(steps, at, np.asarray([r["tokens_per_second"] * r["step_seconds"] for r in records]))


def load_run(run_dir: Path) -> Run:
    """Reads a run's folder. Only metrics.jsonl must be there (ValueError); whatever else is missing is empty."""
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
    """What the number under `key` is, by the first run that declares it."""
    return declared.find({k: m for run in reversed(runs) for k, m in run.known.items()}, key)


def levels(run: Run, name: str) -> dict[str, Metric]:
    """What was recorded as a level of this metric, by key."""
    keys = (key for key in run.names() if run.metric(key).level)
    return {key: run.metric(key) for key in keys if run.metric(key).beside == name and run.last(key) is not None}


def headline(run: Run) -> dict[str, float]:
    """The figures that sum a run up, by name, those that it has: its newest evaluation, medians over its steps."""
    last_step = max((r["step"] for r in run.metrics), default=0)
    rates = {k: run.series(k)[1] for k in ("tokens_per_second", "mfu", "step_seconds", "data_wait_seconds")}
    figures = {"step": last_step, "train_loss": run.last("loss")}
    figures |= {name: run.last(name) for name in run.names() if name.startswith("eval/")}
    if len(rates["step_seconds"]):
        figures["wall_seconds"] = float(run.elapsed(np.asarray([last_step]))[0])
        # The median: the first record holds the compilation.
        figures |= {
            k: float(np.median(rates[k])) for k in ("step_seconds", "tokens_per_second", "mfu") if len(rates[k])
        }
        if len(rates["data_wait_seconds"]):
            figures["data_wait_share"] = float(rates["data_wait_seconds"].sum() / rates["step_seconds"].sum())
    if run.split is not None:
        figures["goodput"] = run.split.goodput
    return {k: v for k, v in figures.items() if v is not None and math.isfinite(v)}


def confusion(run: Run) -> np.ndarray | None:
    """The newest evaluation's counts (C, C) of [label, prediction], where there are any."""
    matrix = run.last("eval/confusion")
    return np.asarray(matrix, float) if matrix else None


def unit(run: Run) -> str:
    """What its throughput counts: "token" or "example"."""
    if run.counts:
        return run.counts.removesuffix("s")
    loss = run.metric("eval/loss").unit
    of_examples = "token" not in loss if loss else confusion(run) is not None
    return "example" if of_examples else "token"


def loss_unit(run: Run) -> str:
    return run.metric("eval/loss").unit or f"per {unit(run)}"


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested config -> {dotted name: value}; a list is one value."""
    if not isinstance(node, dict):
        return {prefix: node}
    items = (flatten(value, f"{prefix}.{key}" if prefix else key) for key, value in node.items())
    return {name: value for flat in items for name, value in flat.items()}


def config_diff(runs: list[Run]) -> dict[str, list[Any]]:
    """{dotted name: the value in each run} of the fields that are not the same in all; None where a run lacks it."""
    flat = [flatten(run.config) for run in runs]
    names = dict.fromkeys(name for config in flat for name in config)
    values = {name: [config.get(name) for config in flat] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def _accumulate(steps: np.ndarray, at: np.ndarray, per_step: np.ndarray) -> np.ndarray:
    """Integral of a per-step quantity from step 0 to each of `steps`; NaN where nothing was recorded."""
    if not len(at):
        return np.full(len(steps), np.nan)
    totals = np.concatenate([[0.0], np.cumsum(np.diff(at, prepend=0.0) * per_step)])
    return np.interp(steps, np.concatenate([[0.0], at]), totals)


def _by_number(path: Path) -> list:
    """step_900 before step_1000."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _json(path: Path) -> dict:
    """A file's JSON object; empty where the run did not live to write it."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):  # the page does without it
        log.warning("%s is not a JSON object and is left out", path)
        return {}
    return found
