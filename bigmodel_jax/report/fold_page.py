"""Write folds.html: metrics of each fold, their mean and spread, and all folds' curves."""

from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.report import declared, elements
from bigmodel_jax.report.fold_record import FOLDER, read_folds
from bigmodel_jax.report.history import Run, load_run, metric_of
from bigmodel_jax.report.plot_style import DARK, LIGHT, Theme, new_axes, render, smooth
from bigmodel_jax.report.progress import duration
from bigmodel_jax.report.shell import shell
from bigmodel_jax.report.writers import METRICS_FILE

CARDS, LABELS = 4, 30  # how many metrics have a card; how many labels the table shows
NOTE = (
    "Each fold's value, the mean (diamond), and the mean's 95 % interval, corrected for the training records that folds "
    "share (Nadeau & Bengio, 2003). Second plot: the evaluations of all folds by step, or their training losses where each "
    "was evaluated once."
)
TABLE_NOTE = (
    "From each fold's last evaluation. Spread: the standard deviation over folds. Both intervals are of the mean, by the t "
    "distribution. The first assumes independent folds, the second (corrected) does not. Intervals of shares are cut at 0 "
    "and 100 %."
)


def build_fold_page(folder: Path, output: Path) -> Path:
    """Write the page of the cross-validation in `folder`, finished or not. Returns `output`."""
    record = read_folds(folder)
    folders = {n: Path(folder) / FOLDER / str(n) for n in range(record["k"])}
    # The page may be asked for at any time, and a fold that has not begun has no metrics.
    runs = {n: load_run(path) for n, path in folders.items() if (path / METRICS_FILE).is_file()}
    subject = record, runs
    light, dark = (
        render({"by_fold": values_figure, "curves": curves_figure}, subject, theme) for theme in (LIGHT, DARK)
    )
    body = "".join(
        (
            _header(record),
            f'<div class="cards">{"".join(_cards(record, runs))}</div>',
            elements.section("Folds together", _figures(light, dark), NOTE),
            elements.section("Metrics by fold", _metrics(record, runs), TABLE_NOTE),
            elements.section("The folds", _folds(record), _how(record)),
            elements.section("Why folds failed", _reasons(record)),
        )
    )
    files.replace(output, shell(record["name"], body))
    return output


def _figures(light: dict[str, bytes], dark: dict[str, bytes]) -> str:
    return f'<div class="figures">{elements.pictures(light, dark)}</div>' if light else ""


def _header(record: dict[str, Any]) -> str:
    ended = sum(not fold["reason"] for fold in record["folds"])
    facts = [f"<b>{ended}</b> of {record['k']} folds finished", f"<b>{sum(record['records']):,}</b> records"]
    facts += ["the source's own validation split was not used"] if record.get("aside") else []
    spans = "".join(f"<span>{text}</span>" for text in facts)
    head = f'<header><p class="kicker">Cross-validation</p><h1>{escape(record["name"])}</h1>'
    return f'{head}<p class="facts">{spans}</p></header>'


def _cards(record: dict[str, Any], runs: dict[int, Run]) -> list[str]:
    found = record.get("summary") or {}
    first = [name for name in found if name == record["metric"]]
    names = first + [name for name in found if name not in first and _is_metric(name, runs)]
    cards = []
    for name in names[:CARDS]:
        metric, one = metric_of(list(runs.values()), name), found[name]
        spread = f"± {_text(metric, one['std'])} over folds" if one["std"] is not None else "one fold"
        cards.append(elements.card(f"{metric.title}, mean", _text(metric, one["mean"]), spread))
    return cards


def _is_metric(name: str, runs: dict[int, Run]) -> bool:
    """Whether the name is a metric, not a baseline level that simple methods reach."""
    return not metric_of(list(runs.values()), name).level


def _text(metric: Any, value: float | None) -> str:
    return "–" if value is None else declared.text(metric, value).replace(" ", "\u00a0")  # keeps "93.2 %" on one line


def _metrics(record: dict[str, Any], runs: dict[int, Run]) -> str:
    found = record.get("summary") or {}
    heads = ["Metric", "Mean", "Spread", "95 %", "95 %, corrected", *(f"Fold {n}" for n in range(len(record["folds"])))]
    rows = []
    for name, one in found.items():
        metric = metric_of(list(runs.values()), name)
        values = [_text(metric, fold["metrics"].get(name)) for fold in record["folds"]]
        ends = [
            " to ".join(_text(metric, x) for x in one[key]) if one[key] else "–" for key in ("interval", "corrected")
        ]
        rows.append([metric.title, _text(metric, one["mean"]), _text(metric, one["std"]), *ends, *values])
    return elements.table(heads, rows) if rows else ""


def _folds(record: dict[str, Any]) -> str:
    labels = list(record["labels"])[:LABELS]
    heads = ["Fold", "Held out", "Trained on", *labels, "Time"]
    total, rows = sum(record["records"]), []
    for n, count in enumerate(record["records"]):
        fold = record["folds"][n] if n < len(record["folds"]) else None
        seconds = duration(fold["seconds"]) if fold else "–"
        own = [f"{record['labels'][label][n]:,}" for label in labels]
        rows.append([str(n), f"{count:,}", f"{total - count:,}", *own, seconds])
    return elements.table(heads, rows)


def _how(record: dict[str, Any]) -> str:
    said = ["Each fold is a run in folds/."]
    if record["labels"]:
        said.append(
            f"Labels ({record['label']}) are spread evenly over the folds; their columns count the records held out."
        )
    same = f"Records that are equal in {record['together']!r}" if record["together"] else "Equal records"
    said.append(f"{same} lie in one fold. Seed {record['seed']}.")
    return " ".join(said)


def _reasons(record: dict[str, Any]) -> str:
    reasons = {f"Fold {n}": fold["reason"] for n, fold in enumerate(record["folds"]) if fold["reason"]}
    return elements.panel(elements.definitions(reasons)) if reasons else ""


# ------------------------------------------------------------ figures


def values_figure(subject: tuple[dict[str, Any], dict[int, Run]], theme: Theme):
    """The metric of each fold, and its mean with its interval."""
    record, runs = subject
    values = {n: fold["value"] for n, fold in enumerate(record["folds"]) if fold["value"] is not None}
    if not values:
        return None
    metric = metric_of(list(runs.values()), record["metric"])
    figure, axes = new_axes(theme, f"{metric.title} by fold", xlabel="fold")
    axes.plot(list(values), list(values.values()), "o", color=theme.series[0], markersize=8)
    one = (record.get("summary") or {}).get(record["metric"])
    if one is not None and one["corrected"]:
        low, high = one["corrected"]
        # matplotlib takes the distances of the ends from the mean.
        ends = [[one["mean"] - low], [high - one["mean"]]]
        style = {"fmt": "D", "color": theme.series[1], "markersize": 9, "capsize": 6, "linewidth": 2}
        # Folds are numbered from 0, so the mean stands right of the last one.
        axes.errorbar(record["k"], one["mean"], ends, **style)
        axes.axhline(one["mean"], color=theme.series[1], linewidth=1, linestyle="--")
    axes.set_xticks([*range(record["k"]), record["k"]], [*map(str, range(record["k"])), "mean"])
    axes.set_xlim(-0.5, record["k"] + 0.5)
    return figure


def curves_figure(subject: tuple[dict[str, Any], dict[int, Run]], theme: Theme):
    """The metric of all folds by step, or their training losses."""
    record, runs = subject
    if not runs:
        return None
    # A single point draws no line. If any fold was evaluated only once, all folds show their
    # training losses.
    evaluated = all(len(run.series(record["metric"])[0]) > 1 for run in runs.values())
    key = record["metric"] if evaluated else "loss"
    found = {n: run.series(key) for n, run in runs.items()}
    if max(len(steps) for steps, _ in found.values()) < 2:
        return None
    title = metric_of(list(runs.values()), key).title
    figure, axes = new_axes(theme, f"{title} of all folds" if evaluated else "Training loss of all folds")
    for n, (steps, values) in found.items():
        if len(steps):
            color = theme.series[n % len(theme.series)]
            axes.plot(steps, values if evaluated else smooth(values), color=color, linewidth=1.6, label=f"fold {n}")
    if not evaluated:
        # The scale leaves out the first twentieth, where the loss is far above the rest.
        later = np.concatenate([values[len(values) // 20 :] for _, values in found.values() if len(values)])
        axes.set_ylim(min(0.0, later.min()), later.max() * 1.05)
    # With more folds than colours, a legend would give one colour to several.
    if len(found) <= len(theme.series):
        axes.legend(frameon=False, fontsize=10, labelcolor=theme.muted, ncols=2)
    return figure
