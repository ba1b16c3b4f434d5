"""Tables of the newest evaluation: metrics by class, and metrics by group of rows."""

import itertools
from html import escape

from bigmodel_jax.core.metrics import Metric, precision_recall_f1
from bigmodel_jax.metrics.labels import averages
from bigmodel_jax.report import declared, elements
from bigmodel_jax.report.history import Run, confusion

AVERAGES = {"macro": "Mean over classes (macro)", "micro": "Over all rows (micro)"}


def per_class(run: Run) -> str:
    """Precision, recall and F1 of each class, and their means; "" without a confusion matrix."""
    matrix = confusion(run)
    if matrix is None:
        return ""
    scores = precision_recall_f1(matrix)
    rows = [_class_row(run.label(c), {name: values[c] for name, values in scores.items()}) for c in range(len(matrix))]
    rows += [_class_row(AVERAGES[kind], means) for kind, means in averages(scores, matrix).items()]
    return _table(("Class", "Precision", "Recall", "F1", "Examples"), "".join(rows))


def overlap(run: Run) -> str:
    """IoU, precision, recall and pixels of each class; "" if the run does not segment."""
    lines = run.last("eval/overlap") or []
    rows = "".join(_overlap_row(run.label(c), *line[:4]) for c, line in enumerate(lines))
    return _table(("Class", "IoU", "Precision", "Recall", "Pixels"), rows) if rows else ""


def _overlap_row(name: str, iou: float | None, precision: float, recall: float, pixels: float) -> str:
    first = (
        "<td>neither in labels nor in predictions</td>" if iou is None else f"<td>{_meter(iou)}{100 * iou:.1f} %</td>"
    )
    shares = "".join(f"<td>{100 * x:.1f} %</td>" for x in (precision, recall))
    return f"<tr><th>{escape(name)}</th>{first}{shares}<td>{pixels:,.0f}</td></tr>"


def average_precision(run: Run) -> str:
    """Average precision of each class at IoU 0.5, and averaged over IoU 0.5 to 0.95.

    Empty if the run does not detect objects.
    """
    lines = run.last("eval/precision_by_class") or []
    # A class without true boxes has no recall, so its average precision is undefined.
    rows = "".join(_precision_row(run.label(c), *line) for c, line in enumerate(lines) if line[2])
    return _table(("Class", "AP@.5", "AP@[.5:.95]", "True boxes"), rows) if rows else ""


def every(run: Run) -> str:
    """All tables by class that the run has: of classified rows, of pixels, of boxes."""
    return per_class(run) + overlap(run) + average_precision(run)


def _precision_row(name: str, at_half: float, over_all: float, objects: float) -> str:
    shares = f"<td>{_meter(at_half)}{100 * at_half:.1f} %</td><td>{100 * over_all:.1f} %</td>"
    return f"<tr><th>{escape(name)}</th>{shares}<td>{objects:,.0f}</td></tr>"


def _class_row(name: str, scores: dict[str, float]) -> str:
    shares = "".join(f"<td>{100 * scores[k]:.1f} %</td>" for k in ("precision", "recall"))
    f1 = f"<td>{_meter(scores['f1'])}{100 * scores['f1']:.1f} %</td>"
    return f"<tr><th>{escape(name)}</th>{shares}{f1}<td>{scores['support']:,.0f}</td></tr>"


def by_group(run: Run) -> str:
    """Each metric of each group of rows, with its interval; "" if the run has no groups."""
    lines = group_lines(run)
    rows = ""
    # groupby joins neighbours only. The lines come ordered by metric.
    for name, of_metric in itertools.groupby(lines, key=lambda line: line[0]):
        metric = run.metric(f"eval/{name}")
        unit = f" {metric.unit}" if metric.unit else ""
        rows += f'<tr><th colspan="4">{escape(metric.title)}<span class="note">{escape(unit)}</span></th></tr>'
        rows += "".join(_group_row(metric, *line[1:]) for line in of_metric)
    return _table(("Group", "Value", "95 % interval", "Rows"), rows) if rows else ""


def _group_row(metric: Metric, group: str, rows: int, value: float, low: float, high: float) -> str:
    value_text, low, high = (escape(declared.text(metric, x)) for x in (value, low, high))
    meter = _meter(value) if declared.is_share(metric) else ""
    cells = f"<td>{meter}{value_text}</td><td>{low} to {high}</td><td>{rows:,.0f}</td>"
    return f"<tr><th>{escape(group)}</th>{cells}</tr>"


def group_lines(run: Run) -> list[list]:
    """[metric, group, rows, value, low, high] lines of the newest evaluation, ordered by metric."""
    return [[str(line[0]), str(line[1]), *map(float, line[2:6])] for line in run.last("eval/groups") or []]


def _meter(share: float) -> str:
    return f'<span class="meter"><b style="width:{100 * share:.1f}%"></b></span>'


def _table(names: tuple[str, ...], rows: str) -> str:
    heads = "".join(f"<th>{name}</th>" for name in names)
    return elements.panel(f'<table class="classes"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>')
