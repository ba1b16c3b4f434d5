"""Write quantize.html: a model's weights in every format, by size, quality and speed."""

import itertools
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bigmodel_jax.core import files
from bigmodel_jax.report import elements
from bigmodel_jax.report.plot_style import DARK, LIGHT, Theme, new_axes, render
from bigmodel_jax.report.shell import shell

NOTE = (
    "Each row stores the same weights in another format, without training. Rows named after runs are other models. The metric "
    "is computed on the first rows of the validation split. Speed is that of greedy generation of one text: with weights that "
    "a CPU makes dense once, and with weights as they are stored."
)


def build_quantized_page(record: dict[str, Any], table: tuple[Sequence[str], list[list[str]]], output: Path) -> Path:
    """Write the page of a comparison (compress/compare.py). Returns `output`.

    table: the heads and rows of its table, as texts.
    """
    figures: dict[str, Callable] = {"size_and_quality": _quality, "speed": _speed}
    light, dark = (render(figures, record, theme) for theme in (LIGHT, DARK))
    (output.parent / "plots").mkdir(parents=True, exist_ok=True)
    for name, png in light.items():
        files.replace(output.parent / "plots" / f"{name}.png", png)
    name = Path(record["run"]).name
    facts = [
        f"step {record['step']:,}",
        f"{record['eval_rows']:,} rows evaluated",
        f"{record['calibration_rows']:,} rows of calibration for GPTQ",
        record["device"],
    ]
    spans = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    body = "".join(
        (
            f'<header><p class="kicker">Quantised</p><h1>{escape(name)}</h1><p class="facts">{spans}</p></header>',
            elements.section("Kinds", elements.table(*table), NOTE),
            elements.section("Plots", f'<div class="figures">{elements.pictures(light, dark)}</div>'),
        )
    )
    files.replace(output, shell(f"{name}, quantised", body).encode())
    return output


def _quality(record: dict[str, Any], theme: Theme):
    metric = record["metric"].replace("_", " ")
    figure, axes = new_axes(theme, f"Size and {metric}", "size of the weights, share of float32")
    values = [row["value"] for row in record["rows"]]
    spread = max(values) - min(values) or 1.0
    drawn: list[tuple[float, float]] = []
    for row, color in zip(record["rows"], itertools.cycle(theme.series)):
        x, y = row["share"], row["value"] / spread
        # Points that lie closer than 3 % of the axes cover each other, so the later ones are rings.
        rings = sum(abs(x - a) < 0.03 and abs(y - b) < 0.03 for a, b in drawn)
        drawn.append((x, y))
        style = {"markersize": 8 + 6 * rings, "fillstyle": "none" if rings else "full", "markeredgewidth": 2}
        axes.plot([row["share"]], [row["value"]], "o", linestyle="none", color=color, label=row["name"], **style)
    axes.set_ylabel(metric)
    axes.set_xlim(0, 1.05)
    # If qualities differ little, Matplotlib would write the ticks relative to an offset, which few
    # can read.
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.legend(frameon=False, fontsize=10)
    return figure


def _speed(record: dict[str, Any], theme: Theme):
    rows = [row for row in record["rows"] if "wide" in row]
    if not rows:
        return None
    figure, axes = new_axes(theme, "Speed of one text", "tokens/s")
    places = range(len(rows))
    axes.barh(
        [i - 0.2 for i in places], [row["wide"] for row in rows], 0.36, color=theme.series[0], label="as generated"
    )
    # A model that is not quantised generates at one speed: its stored weights are the ones it uses.
    # Its second bar gets the length 0, because each bar needs a number.
    stored = [row.get("stored", 0.0) for row in rows]
    axes.barh([i + 0.2 for i in places], stored, 0.36, color=theme.series[1], label="as stored")
    axes.set_yticks(list(places), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.6 * max(row["wide"] for row in rows))  # room for the names
    axes.legend(frameon=False, fontsize=10, loc="center right")
    return figure
