"""Write law.html: a scaling law's coefficients, iso-FLOP curves, and expected losses."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.report import elements
from bigmodel_jax.report.plot_style import DARK, LIGHT, Theme, label_ends, new_axes, render
from bigmodel_jax.report.progress import short
from bigmodel_jax.report.shell import shell

CURVES = 6  # number of iso-FLOP curves
NOTE = (
    "Iso-FLOP curves: the loss that the law predicts for each model size at 6 N D FLOPs. Dots: the minimum. Circles: "
    "the runs, in the colour of the nearest curve. Intervals: the middle 95 % of laws fitted to bootstrap samples of runs. A "
    "law is not reliable for sizes far from those of its runs."
)


def build_law_page(record: dict[str, Any], law: Any, output: Path) -> Path:
    """Write the page of a `law.json` record. Returns `output`.

    law: an object with the functions `loss(N, D)` and `optimum(FLOPs)`.
    """
    figures: dict[str, Callable] = {"iso_flop_curves": _iso_flops, "law_and_runs": _residuals}
    light, dark = (render(figures, (record, law), theme) for theme in (LIGHT, DARK))
    title = f"Scaling law of {len(record['points'])} runs"
    body = "".join(
        (
            f'<header><p class="kicker">Scaling law</p><h1>{escape(title)}</h1></header>',
            elements.section("Law", f'<div class="cards">{_cards(record)}</div>', _formula(record)),
            elements.section("Expected", _expected(record)),
            elements.section("Curves", f'<div class="figures">{elements.pictures(light, dark)}</div>', NOTE),
            elements.section("Runs", _runs(record, law)),
        )
    )
    files.replace(output, shell(title, body).encode())
    return output


def _formula(record: dict[str, Any]) -> str:
    share = record["law"]["beta"] / (record["law"]["alpha"] + record["law"]["beta"])
    return (
        f"{record['metric']} = E + A / N^alpha + B / D^beta, over N parameters and D tokens; the best N grows as FLOPs "
        f"to the power {share:.3f}, the best D to {1 - share:.3f}"
    )


def _cards(record: dict[str, Any]) -> str:
    return "".join(
        elements.card(name, f"{value:.4g}", "95 %: {:.4g} to {:.4g}".format(*record["intervals"][name]))
        for name, value in record["law"].items()
    )


def _expected(record: dict[str, Any]) -> str:
    rows = []
    for one in record["expected"]:
        interval = "{:.4f} to {:.4f}".format(*one["interval"])
        rows.append(
            [short(one["N"]), short(one["D"]), f"{6 * one['N'] * one['D']:.3g}", f"{one['loss']:.4f}", interval]
        )
    return elements.table(("Parameters", "Tokens", "FLOPs", "Loss", "95 %"), rows)


def _runs(record: dict[str, Any], law: Any) -> str:
    rows = []
    for one in sorted(record["points"], key=lambda one: one["N"] * one["D"]):
        said = float(law.loss(one["N"], one["D"]))
        rows.append([one["run"], short(one["N"]), short(one["D"]), f"{one['loss']:.4f}", f"{said:.4f}"])
    return elements.table(("Run", "Parameters", "Tokens", "Loss", "Law"), rows)


# ------------------------------------------------------------ figures


def _iso_flops(subject: tuple[dict, Any], theme: Theme):
    record, law = subject
    N, D, loss = (np.array([one[name] for one in record["points"]]) for name in ("N", "D", "loss"))
    largest = max(6 * one["N"] * one["D"] for one in record["expected"])
    levels = np.geomspace((6 * N * D).min(), max(largest, (6 * N * D).max()), CURVES)
    figure, axes = new_axes(theme, "Iso-FLOP curves", "parameters", height=4.2)
    axes.set_xscale("log")
    sizes = np.geomspace(N.min() / 2, max(N.max(), *(one["N"] for one in record["expected"])) * 2, 200)
    # Each run has the colour of the iso-FLOP level nearest to its own FLOPs.
    nearest = np.abs(np.log(6 * N * D)[:, None] - np.log(levels)[None]).argmin(axis=1)
    # The law rises steeply towards small sizes, so curves are cut just above the runs.
    top, ends = loss.max() * 1.1, []
    for i, (compute, color) in enumerate(zip(levels, theme.series, strict=False)):
        # Training takes about 6 N D FLOPs (arXiv:2001.08361, section 2.1), so D = FLOPs / (6 N).
        values = law.loss(sizes, compute / 6 / sizes)
        shown = values <= top
        best = law.optimum(compute)
        axes.plot(sizes[shown], values[shown], color=color, linewidth=2)
        axes.plot(best[0], law.loss(*best), color=color, marker="o", markersize=6)
        axes.plot(N[nearest == i], loss[nearest == i], "o", color=color, markersize=5, fillstyle="none")
        if shown.any():
            ends.append((float(values[shown][-1]), f"{compute:.1e}", color))
    axes.set_ylabel(record["metric"])
    label_ends(figure, axes, ends)
    return figure


def _residuals(subject: tuple[dict, Any], theme: Theme):
    record, law = subject
    said = np.array([law.loss(one["N"], one["D"]) for one in record["points"]])
    found = np.array([one["loss"] for one in record["points"]])
    figure, axes = new_axes(theme, "Predicted and measured loss", "law")
    ends = np.array([min(said.min(), found.min()), max(said.max(), found.max())])
    axes.plot(ends, ends, color=theme.muted, linewidth=1)
    axes.plot(said, found, "o", color=theme.series[0], markersize=5)
    axes.set_ylabel(f"run ({record['metric']})")
    return figure
