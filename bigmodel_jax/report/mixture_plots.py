"""Figures of a run on a data mixture: share, epochs and held-out loss of each part."""

import itertools

import numpy as np

from bigmodel_jax.report.history import Run, loss_unit
from bigmodel_jax.report.plot_style import Theme, curve, label_ends, new_axes, percent_ticks

GIVEN = "mixture/"  # prefix of the keys of a mixture's counts
LOSS = "eval/loss/"


def part_names(run: Run) -> list[str]:
    """The parts of the run's mixture; [] without a mixture."""
    return [name.split("/")[1] for name in run.names() if name.startswith(GIVEN) and name.endswith("/epochs")]


def loss_by_part_figure(run: Run, theme: Theme):
    """The held-out loss on each part."""
    curves = {part: run.series(LOSS + part) for part in part_names(run)}
    return _figure(theme, f"Held-out loss by part, {loss_unit(run)}", curves, marker="o")


def epochs_by_part_figure(run: Run, theme: Theme):
    """How many times the run has passed over each part."""
    return _figure(
        theme, "Passes over each part", {part: run.series(f"{GIVEN}{part}/epochs") for part in part_names(run)}
    )


def share_by_part_figure(run: Run, theme: Theme):
    """Each part's share of the examples between two records."""
    curves = {}
    for part in part_names(run):
        # Counts are cumulative, so differences give the examples since the record before.
        steps, examples = run.series(f"{GIVEN}{part}/examples")
        curves[part] = steps, np.diff(examples, prepend=0.0)
    if not curves:
        return None
    # The bound avoids 0 / 0 where two records have no examples between them.
    total = np.maximum(sum(values for _, values in curves.values()), 1)
    curves = {part: (steps, values / total) for part, (steps, values) in curves.items()}
    return _figure(theme, "Share of each part in the batches", curves, shares=True)


def _figure(theme: Theme, title: str, curves: dict, *, marker: str | None = None, shares: bool = False):
    if max((len(steps) for steps, _ in curves.values()), default=0) < 2:
        return None
    figure, axes = new_axes(theme, title)
    labels = [
        curve(axes, steps, values, color, part, marker=marker)
        for (part, (steps, values)), color in zip(curves.items(), itertools.cycle(theme.series))
        if len(steps)
    ]
    if shares:
        percent_ticks(axes.yaxis)
        axes.set_ylim(0, 1.02)
    return label_ends(figure, axes, labels)
