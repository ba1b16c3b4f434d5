"""Draw a sweep: values by trial, curves, parallel coordinates, importance, and values by seed."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from bigmodel_jax.report.plot_style import Theme, new_axes, short_tick, smooth
from bigmodel_jax.report.sweep import SweepRecord, Trial


def history_figure(sweep: SweepRecord, theme: Theme):
    """Each trial's value by its number, and the best value so far."""
    if not sweep.done:
        return None
    figure, axes = new_axes(theme, f"{_name(sweep)} by trial", xlabel="trial")
    numbers, values = zip(*((trial.number, trial.value) for trial in sweep.done), strict=True)
    best = (np.minimum if sweep.better == "less" else np.maximum).accumulate(values)
    axes.step(numbers, best, where="post", color=theme.series[0], linewidth=2)
    axes.plot(numbers, values, "o", color=theme.muted, markersize=5)
    axes.plot(sweep.best.number, sweep.best.value, "o", color=theme.series[0], markersize=9)
    _zoom(axes, values, sweep.better)
    axes.locator_params(axis="x", integer=True)
    return figure


def curves_figure(sweep: SweepRecord, theme: Theme):
    """The evaluations of all trials by step.

    If most trials have at most one evaluation, the figure shows their training losses instead.
    """
    evaluated = sum(len(trial.reports) > 1 for trial in sweep.trials) * 2 >= len(sweep.trials)
    curves = {t.number: (t, t.reports if evaluated else t.losses) for t in sweep.trials}
    curves = {number: found for number, found in curves.items() if found[1]}
    if not curves or max(len(points) for _, points in curves.values()) < 2:
        return None
    title = f"{_name(sweep)} of all trials" if evaluated else "Training loss of all trials"
    figure, axes = new_axes(theme, title)
    # The best trial is drawn last, on top of the others.
    for trial, points in sorted(curves.values(), key=lambda found: found[0] is sweep.best):
        steps, values = np.array(points, float).T
        best = trial is sweep.best
        style = {"color": theme.series[0], "linewidth": 2.4} if best else {"color": theme.muted, "linewidth": 1}
        style |= {} if best else {"alpha": 0.55, "linestyle": "--" if trial.state == "pruned" else "-"}
        axes.plot(steps, values if evaluated else smooth(values), **style)
        if trial.state == "pruned":
            axes.plot(steps[-1], values[-1], "x", color=theme.muted, markersize=6)
    ends = [points[-1][1] for _, points in curves.values()]
    # The scale leaves out the first quarter of each curve.
    later = [value for _, points in curves.values() for _, value in points[len(points) // 4 :]]
    _zoom(axes, [*later, *ends], "less" if not evaluated else sweep.better)
    return figure


def coordinates_figure(sweep: SweepRecord, theme: Theme):
    """Parallel coordinates: a vertical axis for each field and one for the metric.

    Each trial is a line. Better trials are drawn stronger.
    """
    if len(sweep.done) < 2:
        return None
    names = list(sweep.space)
    figure, axes = new_axes(theme, "Parallel coordinates", xlabel="", height=4.4)
    # The larger padding leaves room for the texts above the axes.
    axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=13, weight="bold", pad=30)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    # The best trial comes last, so that its line lies on top.
    ranked = sorted(sweep.done, key=lambda trial: trial.value, reverse=sweep.better == "less")
    values = [trial.value for trial in ranked]
    low, high = _core(values, sweep.better)
    for rank, trial in enumerate(ranked):
        places = [*(_place(sweep.space[n], trial.values[n]) for n in names), _share(trial.value, low, high)]
        best = trial is ranked[-1]
        # Even the worst trial stays visible.
        strength = 0.15 + 0.6 * rank / len(ranked)
        style = {"color": theme.series[1], "linewidth": 2.6} if best else {"color": theme.series[0], "alpha": strength}
        axes.plot(range(len(places)), places, **({"linewidth": 1.3} | style))
    for at in range(len(names) + 1):
        axes.axvline(at, color=theme.muted, linewidth=1)
    for at, name in enumerate(names):
        _labels(axes, at, sweep.space[name], theme)
    _ends(axes, len(names), [f"{low:.4g}", f"{high:.4g}"])
    axes.set_xticks(range(len(names) + 1), [*map(_broken, names), _broken(sweep.metric)], fontsize=10.5)
    axes.tick_params(axis="x", pad=24)
    axes.set_yticks([])
    axes.set_xlim(-0.25, len(names) + 0.25)
    axes.set_ylim(-0.03, 1.03)
    return figure


def importance_figure(sweep: SweepRecord, theme: Theme):
    """Each field's share in the spread of the metric."""
    if not sweep.importance:
        return None
    ordered = sorted(sweep.importance.items(), key=lambda item: item[1])
    figure, axes = new_axes(theme, f"Importance for {sweep.metric}", xlabel="", height=1.4 + 0.42 * len(ordered))
    axes.barh(range(len(ordered)), [share for _, share in ordered], color=theme.series[0], height=0.55)
    for at, (_, share) in enumerate(ordered):
        axes.text(share, at, f" {100 * share:.0f} %", va="center", color=theme.ink, fontsize=11)
    axes.set_yticks(range(len(ordered)), [name for name, _ in ordered], fontsize=11)
    axes.set_xticks([])
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(0, 1.15 * max(share for _, share in ordered))
    return figure


FIGURES: dict[str, Callable] = {
    "history": history_figure,
    "curves": curves_figure,
    "parallel_coordinates": coordinates_figure,
    "importance": importance_figure,
}


def seeds_figure(seeds: dict[str, Any], theme: Theme):
    """Each seed's two values, joined by a line, beside the means."""
    first, second = seeds["configs"]
    figure, axes = new_axes(theme, f"{seeds['metric']} by seed", xlabel="")
    for a, b in zip(first["values"], second["values"], strict=True):
        if a is not None and b is not None:
            axes.plot([0, 1], [a, b], "-o", color=theme.muted, linewidth=1, markersize=5, alpha=0.7)
    for at, one in enumerate((first, second)):
        if one["mean"] is not None:
            color = theme.series[at]
            # A single seed has a mean but no spread.
            axes.errorbar(at, one["mean"], one["std"] or 0, fmt="D", color=color, markersize=9, capsize=6, linewidth=2)
    axes.set_xticks([0, 1], [first["name"], second["name"]])
    axes.set_xlim(-0.4, 1.4)
    return figure


# ------------------------------------------------------------ places on an axis


def _name(sweep: SweepRecord) -> str:
    return sweep.metric.removeprefix("eval/").replace("_", " ").capitalize()


def _core(values: list[float], better: str) -> tuple[float, float]:
    """The ends of a scale on which a few bad values do not squeeze the others.

    The scale begins at the best value. It ends at the worst one, or at three times the spread of
    the better half, whichever is nearer.
    """
    ordered = sorted(values, reverse=better == "more")
    spread = 3 * abs(ordered[len(ordered) // 2] - ordered[0]) or abs(ordered[-1] - ordered[0]) or 1.0
    if better == "more":
        return max(ordered[-1], ordered[0] - spread), ordered[0]
    return ordered[0], min(ordered[-1], ordered[0] + spread)


def _zoom(axes, values: list[float], better: str) -> None:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return
    low, high = _core(finite, better)
    # Equal values have no spread, and matplotlib would widen equal limits at will.
    margin = 0.07 * (high - low) or 0.07 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)


def _share(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5


def _place(dimension: dict[str, Any], value: Any) -> float:
    ends = dimension["ends"]
    # Choices stand in the middles of equal parts, where `_labels` writes their names.
    if dimension["kind"] == "choice":
        return (ends.index(value) + 0.5) / len(ends)
    if dimension["log"]:
        return _share(math.log(value), math.log(ends[0]), math.log(ends[1]))
    return _share(value, *ends)


def _labels(axes, at: int, dimension: dict[str, Any], theme: Theme) -> None:
    """A range's ends above and below its axis, or a choice's labels beside it."""
    ends = dimension["ends"]
    if dimension["kind"] != "choice":
        return _ends(axes, at, [_short(end) for end in ends])
    box = {"facecolor": theme.paper, "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    for place, label in enumerate(ends):
        text = "\n".join(map(_short, _parts(label)))
        axes.text(at + 0.05, (place + 0.5) / len(ends), text, fontsize=10.5, va="center", bbox=box, zorder=5)


def _ends(axes, at: int, texts: list[str]) -> None:
    for height, text, side in ((-0.05, texts[0], "top"), (1.05, texts[1], "bottom")):
        axes.text(at, height, text, fontsize=10.5, ha="center", va=side, clip_on=False)


def _parts(label: Any) -> list[Any]:
    """The fields of a config's part, without its class.

    Any other label is returned as it is.
    """
    found = re.fullmatch(r"\w+\((\w+=.*)\)", label) if isinstance(label, str) else None
    return re.split(r", (?=\w+=)", found[1]) if found else [label]  # a comma inside a tuple does not split


def _short(value: Any) -> str:
    if type(value) is int:  # and not a bool
        return short_tick(value, 0)
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 14 else f"{text[:13]}…"


def _broken(name: str) -> str:
    """A dotted name with one part per line."""
    return name.replace(".", ".\n").replace("/", "/\n")


def label_of(trial: Trial, name: str) -> str:
    """A trial's value of a field as text."""
    value = trial.values.get(name, "–")
    return f"{value:.4g}" if isinstance(value, float) else ", ".join(map(str, _parts(value)))
