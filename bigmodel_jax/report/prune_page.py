"""Write prune.html: what a model loses as it becomes smaller, before and after healing."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from bigmodel_jax.core import files
from bigmodel_jax.report import elements
from bigmodel_jax.report.plot_style import DARK, LIGHT, Theme, curve, label_ends, new_axes, percent_ticks, render
from bigmodel_jax.report.progress import short
from bigmodel_jax.report.shell import shell

TITLES = {
    "magnitude": "Magnitude pruning",
    "wanda": "Wanda",
    "structured_layers": "Fewer layers",
    "mlp_channels": "Narrower MLPs",
}
NOTES = {
    "magnitude": "The smallest weights of each matrix are set to zero (arXiv:1710.01878).",
    "wanda": "For each output, the weights with the smallest |w| times input norm are set to zero (arXiv:2306.11695).",
    "structured_layers": "The layers that rotate the residual least are removed (block influence, arXiv:2403.03853).",
    "mlp_channels": "Hidden channels are removed where (channel's norm) x (norm of the weights that read it) is smallest.",
}
SPARSE = (
    "Zeros are stored like other numbers, so the model is as large and as fast as before unless a kernel skips them."
)
SMALLER = "The new run's config is smaller, so the model needs less memory and less time on every device."
COLUMNS = 4  # how many figures of an evaluation the table shows


def build_prune_page(record: dict[str, Any], output: Path) -> Path:
    """Write the page of a `prune.json` record. Returns `output`."""
    figures: dict[str, Callable] = {"figure_over_sparsity": _curve, "block_influence": _influence}
    light, dark = (render(figures, record, theme) for theme in (LIGHT, DARK))
    kind, last = record["kind"], record["points"][-1]
    pattern = f", {record['pattern']}" if record["pattern"] else ""
    title = f"{TITLES[kind]}{pattern} of {record['run']}"
    what = SPARSE if kind in ("magnitude", "wanda") else SMALLER
    body = "".join(
        (
            f'<header><p class="kicker">Pruning</p><h1>{escape(title)}</h1></header>',
            elements.section(
                "The new run", f'<div class="cards">{_cards(record, last)}</div>', f"{NOTES[kind]} {what}"
            ),
            elements.section("Validation split", f'<div class="figures">{elements.pictures(light, dark)}</div>'),
            elements.section("Points", _table(record), _healing(record)),
        )
    )
    files.replace(output, shell(title, body).encode())
    return output


def _name(record: dict[str, Any]) -> str:
    return record["metric"].removeprefix("eval/")


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.5g}"


def _size(record: dict[str, Any], point: dict[str, Any]) -> tuple[float, str]:
    """Returns (the share that was removed, the name of the whole)."""
    if record["kind"] in ("magnitude", "wanda"):
        return point["share"], "of the matrices' weights are zero"
    return 1 - point["parameters"] / record["dense"]["parameters"], "of all parameters"


def _cards(record: dict[str, Any], last: dict[str, Any]) -> str:
    key, (share, of) = record["metric"], _size(record, last)
    better = f"{_name(record)}; {record['better']} is better"
    cards = [elements.card("Removed", f"{share:.1%}", of)]
    cards.append(elements.card("Before pruning", _number(record["dense"]["scalars"].get(key)), better))
    cards.append(
        elements.card("Pruned", _number(last["scalars"].get(key)), "before healing" if record["heal"] else better)
    )
    if "healed" in last:
        cards.append(elements.card("Healed", _number(last["healed"].get(key)), f"{record['heal']:,} steps"))
    cards.append(elements.card("Parameters", short(last["parameters"]), f"of {short(record['dense']['parameters'])}"))
    return "".join(cards)


def _healing(record: dict[str, Any]) -> str:
    if not record["heal"]:
        return ""
    kept = "; its zeros stay zero" if record["kind"] in ("magnitude", "wanda") else ""
    return f"Healed: after {record['heal']:,} steps on the run's own training data{kept}."


def _table(record: dict[str, Any]) -> str:
    first, scalars = record["metric"], record["dense"]["scalars"]
    names = [first, *(name for name in scalars if name != first)][:COLUMNS]
    rows = [
        ("before pruning", "", short(record["dense"]["parameters"]), *(_number(scalars.get(name)) for name in names))
    ]
    for point in record["points"]:
        for text, found in (("pruned", point["scalars"]), ("healed", point.get("healed"))):
            if found is not None:
                share = f"{_size(record, point)[0]:.1%}"
                rows.append((text, share, short(point["parameters"]), *(_number(found.get(name)) for name in names)))
    return elements.table(("Model", "Removed", "Parameters", *(name.removeprefix("eval/") for name in names)), rows)


# ------------------------------------------------------------ figures


def _curve(record: dict[str, Any], theme: Theme):
    key, points = record["metric"], record["points"]
    figure, axes = new_axes(theme, f"{_name(record)} by share removed", _size(record, points[-1])[1])
    start, labels = (0.0, record["dense"]["scalars"].get(key)), []
    for n, (name, of) in enumerate((("pruned", lambda p: p["scalars"]), ("healed", lambda p: p.get("healed") or {}))):
        found = [start, *((_size(record, p)[0], of(p).get(key)) for p in points)]
        found = [(x, y) for x, y in found if y is not None]
        # The start alone is no curve, so a second point is needed. If the start is not finite, one
        # point is enough.
        if len(found) > (start[1] is not None):
            x, y = zip(*found, strict=True)
            labels.append(curve(axes, x, y, theme.series[n], name, marker="o"))
    if not labels:
        return None
    percent_ticks(axes.xaxis)
    axes.set_ylabel(f"{_name(record)} ({record['better']} is better)")
    return label_ends(figure, axes, labels)


def _influence(record: dict[str, Any], theme: Theme):
    influence = record["points"][-1].get("influence")
    if not influence:
        return None
    gone = record["points"][-1]["gone"]
    figure, axes = new_axes(theme, "How far each layer rotates the residual", "layer")
    colors = [theme.series[1] if n in gone else theme.series[0] for n in range(len(influence))]
    axes.bar(range(len(influence)), influence, color=colors)
    axes.set_ylabel("1 - cosine (orange: removed)")
    axes.locator_params(axis="x", integer=True)
    return figure
