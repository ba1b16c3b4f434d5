"""Draw the newest evaluation's scores: ROC, precision-recall, calibration, metrics by group."""

import itertools

import numpy as np

from bigmodel_jax.core.metrics import divisor
from bigmodel_jax.metrics.scores import MOST_CURVES
from bigmodel_jax.report import declared
from bigmodel_jax.report.class_tables import group_lines
from bigmodel_jax.report.history import Run
from bigmodel_jax.report.plot_style import Theme, label_ends, new_axes, percent_ticks

MOST_GROUPS = 30  # groups in the figure; the table has all of them


def roc_figure(run: Run, theme: Theme):
    """The ROC curve of each class, with the diagonal of random guessing."""
    figure = _curves(run, theme, "roc", "ROC curve", "false positive rate", "true positive rate")
    if figure is not None:
        axes = figure.axes[0]
        axes.plot([0, 1], [0, 1], color=theme.muted, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
    return figure


def precision_recall_figure(run: Run, theme: Theme):
    """The precision-recall curve of each class."""
    return _curves(run, theme, "precision_recall", "Precision and recall", "recall", "precision")


def _curves(run: Run, theme: Theme, name: str, title: str, xlabel: str, ylabel: str):
    """One curve per class, with its area in the legend."""
    lines = run.last(f"eval/{name}")
    if not lines:
        return None
    figure, axes = new_axes(theme, title, xlabel=xlabel, height=5.6)
    for (number, area, x, y), color in zip(lines, itertools.cycle(theme.series)):
        axes.plot(x, y, color=color, linewidth=2, label=f"{_short(run.label(int(number)))}  {area:.3f}", zorder=2)
    axes.set_ylabel(ylabel)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    title = "class, area" if len(lines) < MOST_CURVES else "class, area: the lowest"
    axes.legend(
        loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, title=title, fontsize=11, handlelength=1.2
    )
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 12 else name[:11] + "…"


def calibration_figure(run: Run, theme: Theme):
    """Accuracy by bins of confidence, above the share of rows in each bin.

    Source: DeGroot and Fienberg, 1983.
    """
    table = run.last("eval/calibration")
    if not table:
        return None
    rows, confidence, accuracy = np.asarray(table, float).T
    error = run.last("eval/ece")
    text = f"   (error {100 * error:.1f} %)" if error is not None else ""
    figure, axes = new_axes(theme, f"Calibration{text}", xlabel="confidence", height=5.6)
    edges = np.linspace(0, 1, len(rows) + 1)
    shares = rows / divisor(rows.sum())
    axes.bar(edges[:-1], shares, np.diff(edges), align="edge", color=theme.series[1], alpha=0.3, linewidth=0)
    axes.plot([0, 1], [0, 1], color=theme.muted, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
    # A bin without rows has no accuracy. Its zero would look like a measured accuracy, so it is
    # left out.
    kept = rows > 0
    low, high = np.minimum(confidence, accuracy)[kept], np.maximum(confidence, accuracy)[kept]
    axes.vlines(confidence[kept], low, high, color=theme.series[0], linewidth=4, alpha=0.35)
    axes.plot(confidence[kept], accuracy[kept], "o-", color=theme.series[0], linewidth=2, markersize=5, zorder=3)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        percent_ticks(axis)
    labels = [(float(accuracy[kept][-1]), "accuracy", theme.series[0]), (float(shares[-1]), "rows", theme.series[1])]
    return label_ends(figure, axes, labels)


def groups_figure(run: Run, theme: Theme):
    """The first metric of each group, with its interval."""
    lines = group_lines(run)
    if not lines:
        return None
    metric = run.metric(f"eval/{lines[0][0]}")
    lines = [line for line in lines if line[0] == lines[0][0]]
    # Only the worst groups are kept. The last reversal puts the worst group on top.
    lines = sorted(lines, key=lambda line: line[3], reverse=metric.better == "less")[:MOST_GROUPS][::-1]
    title = f"{metric.title} by group" + (f", the worst {MOST_GROUPS}" if len(lines) == MOST_GROUPS else "")
    figure, axes = new_axes(theme, title, xlabel=metric.unit, height=1.6 + 0.4 * len(lines))
    places = np.arange(len(lines))
    values, low, high = (np.array([line[n] for line in lines]) for n in (3, 4, 5))
    axes.hlines(places, low, high, color=theme.series[0], linewidth=5, alpha=0.35)
    axes.plot(values, places, "o", color=theme.series[0], markersize=7)
    axes.set_yticks(places, [f"{_short(line[1])}  ({line[2]:,.0f})" for line in lines])
    axes.set_ylim(-0.6, len(lines) - 0.4)
    axes.grid(axis="y", visible=False)
    if declared.is_share(metric):
        percent_ticks(axes.xaxis)
    return figure
