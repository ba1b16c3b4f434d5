"""Draw the curves of several runs in one plot, lettered A, B, C ...

Each figure is a function (runs, theme) -> Figure, or None if the runs have nothing to draw.
"""

import functools
from collections.abc import Callable

import numpy as np

from bigmodel_jax.report.declared import is_share
from bigmodel_jax.report.history import Run, metric_of, unit
from bigmodel_jax.report.plot_style import (
    Theme,
    cut_start,
    label_ends,
    new_axes,
    percent_ticks,
    render,
    short_tick,
    smooth,
)
from bigmodel_jax.report.plots import file_name, is_curve, measured

STEPS_TOGETHER = ("learning_rate", "grad_norm", "tokens_per_second")


def draw_together(runs: list[Run], theme: Theme) -> dict[str, bytes]:
    """{name: PNG} of the loss by step, by time and by tokens, and of other metrics by step."""
    names = dict.fromkeys(
        name for run in runs for name in measured(run) if "loss" not in (name, run.metric(f"eval/{name}").beside)
    )
    more = {file_name(name): functools.partial(metric_together_figure, name) for name in (*names, *STEPS_TOGETHER)}
    return render(TOGETHER | more, runs, theme)


def letter(index: int) -> str:
    """The letter of a run in figures and tables: A to Z, then A1, B1, ..."""
    return chr(ord("A") + index % 26) + (str(index // 26) if index >= 26 else "")


def _by_step(_run: Run, steps: np.ndarray) -> np.ndarray:
    return steps


def _together(
    runs: list[Run],
    theme: Theme,
    title: str,
    name: str = "loss",
    xlabel: str = "step",
    x_of: Callable[[Run, np.ndarray], np.ndarray] = _by_step,
):
    """Held-out curves with points, training curves thin and smoothed."""
    if not runs or not is_curve(*(run.series(key)[0] for run in runs for key in (name, f"eval/{name}"))):
        return None
    figure, axes = new_axes(theme, title, xlabel=xlabel)
    labels, cuts = [], []
    for index, run in enumerate(runs):
        color = theme.series[index % len(theme.series)]
        (steps, train), (eval_steps, held_out) = run.series(name), run.series(f"eval/{name}")
        axes.plot(x_of(run, steps), smooth(train), color=color, linewidth=1, alpha=0.55)
        axes.plot(x_of(run, eval_steps), held_out, color=color, linewidth=2, marker="o", markersize=4)
        if len(train) or len(held_out):
            labels.append((float((held_out if len(held_out) else train)[-1]), letter(index), color))
            cuts.append((train, held_out))
    if name == "loss":
        cut_start(axes, cuts)
    elif name == "tokens_per_second":
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(short_tick)
    elif is_share(metric_of(runs, f"eval/{name}")):
        percent_ticks(axes.yaxis)
    return label_ends(figure, axes, labels)


def loss_by_step_figure(runs: list[Run], theme: Theme):
    """Loss of all runs by step."""
    return _together(runs, theme, "Loss by step")


def loss_by_time_figure(runs: list[Run], theme: Theme):
    """Loss of all runs by minutes of training."""
    by_time = {"xlabel": "minutes", "x_of": lambda run, steps: run.elapsed(steps) / 60}
    return _together(runs, theme, "Loss by training time", **by_time)


def loss_by_tokens_figure(runs: list[Run], theme: Theme):
    """Loss of all runs by tokens or examples; None if the runs count different units."""
    if len(units := {unit(run) for run in runs}) > 1:
        return None
    by_tokens = {"xlabel": "millions", "x_of": lambda run, steps: run.tokens(steps) / 1e6}
    return _together(runs, theme, f"Loss by {units.pop()}s seen", **by_tokens)


def metric_together_figure(name: str, runs: list[Run], theme: Theme):
    """One metric of all runs by step."""
    titles = {"learning_rate": "Learning rate", "grad_norm": "Gradient norm", "tokens_per_second": "Throughput"}
    return _together(runs, theme, titles.get(name) or metric_of(runs, f"eval/{name}").title, name)


TOGETHER: dict[str, Callable] = {
    "loss_by_step": loss_by_step_figure,
    "loss_by_time": loss_by_time_figure,
    "loss_by_tokens": loss_by_tokens_figure,
}
