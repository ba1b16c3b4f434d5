"""Draw the newest confusion matrix of a classifier, and its precision, recall and F1 by class."""

import numpy as np

from bigmodel_jax.core.metrics import divisor, precision_recall_f1
from bigmodel_jax.report.history import Run, confusion
from bigmodel_jax.report.plot_style import Theme, new_axes

MOST_CLASSES = 25  # with more classes, only the worst are drawn, and the matrix has no numbers


def confusion_figure(run: Run, theme: Theme):
    """The confusion matrix, coloured by the share of each label's rows; None without one."""
    matrix = confusion(run)
    if matrix is None:
        return None
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    # `divisor` avoids 0 / 0 for a label without rows.
    shares = matrix / divisor(matrix.sum(1, keepdims=True))
    figure, axes = new_axes(theme, "Confusion matrix", xlabel="prediction", height=5.6)
    colors = LinearSegmentedColormap.from_list("paper to accent", [theme.paper, theme.series[0]])
    # A square-root colour scale makes single errors visible beside a diagonal of hundreds.
    axes.imshow(shares, cmap=colors, norm=PowerNorm(0.5, 0, 1), aspect="equal")
    axes.set_ylabel("label")
    axes.grid(visible=False)
    if len(matrix) <= MOST_CLASSES:
        names = [_short(run.label(c)) for c in range(len(matrix))]
        long = max(map(len, names)) > 3
        axes.set_xticks(range(len(matrix)), names, rotation=45 if long else 0, ha="right" if long else "center")
        axes.set_yticks(range(len(matrix)), names)
        size = min(12, 130 / len(matrix))
        for row, column in zip(*np.nonzero(matrix), strict=True):
            dark = shares[row, column] > 0.4
            color = theme.paper if dark else theme.ink
            axes.text(column, row, f"{matrix[row, column]:.0f}", ha="center", va="center", color=color, fontsize=size)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"


def per_class_figure(run: Run, theme: Theme):
    """Precision, recall and F1 of each class as points; None without a confusion matrix."""
    matrix = confusion(run)
    if matrix is None:
        return None
    scores = precision_recall_f1(matrix)
    classes = np.argsort(scores["f1"], kind="stable")[:MOST_CLASSES]
    classes = np.sort(classes)[::-1]
    rows = np.arange(len(classes))
    few = f", the {MOST_CLASSES} with the lowest F1" if len(matrix) > MOST_CLASSES else ""
    figure, axes = new_axes(theme, f"Per class{few}", xlabel="%", height=max(5.6, 1.6 + 0.32 * len(classes)))
    # The figure has points instead of bars, because the axis of points need not start at 0. So
    # differences of one percent show.
    spread = [scores[k][classes] for k in ("precision", "recall", "f1")]
    axes.hlines(rows, 100 * np.min(spread, 0), 100 * np.max(spread, 0), color=theme.grid, linewidth=5, zorder=1)
    marks = (
        ("precision", "D", 8),
        ("recall", "s", 7),
        ("F1", "o", 5),
    )  # smaller markers lie on top, so equal scores stay visible
    for values, (text, marker, size), color in zip(spread, marks, theme.series, strict=False):
        axes.plot(100 * values, rows, marker, color=color, markersize=size, label=text, zorder=2)
    axes.set_yticks(rows, [_short(run.label(c)) for c in classes])
    axes.set_ylabel("class")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, handletextpad=0.1, columnspacing=1)
    return figure
