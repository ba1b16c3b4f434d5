"""Write ensemble.html: members, their ensemble, and the turns of a greedy soup."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from bigmodel_jax.core import files
from bigmodel_jax.report import elements
from bigmodel_jax.report.plot_style import DARK, LIGHT, Theme, new_axes, render
from bigmodel_jax.report.shell import shell

TITLES = {
    "predictions": "Mean of the predictions",
    "logits": "Mean of the logits",
    "weights": "Mean of the weights",
    "soup": "Greedy soup",
}
NOTES = {
    "predictions": "The ensemble runs every member, so it needs the sum of their memory and time.",
    "logits": "The ensemble runs every member, so it needs the sum of their memory and time.",
    "weights": "The mean is one model, as large and as fast as a member.",
    "soup": (
        "The soup is one model, as large and as fast as a member. Its members were chosen by this metric on the validation "
        "split, so the figure is optimistic for other data."
    ),
}
COLUMNS = 6  # how many figures of an evaluation the table shows


def build_ensemble_page(record: dict[str, Any], output: Path) -> Path:
    """Write the page of an `ensemble.json` record."""
    figures: dict[str, Callable] = {"members_and_ensemble": _bars, "turns_of_the_soup": _turns}
    light, dark = (render(figures, record, theme) for theme in (LIGHT, DARK))
    title = f"{TITLES[record['how']]} of {len(record['members'])} members"
    body = "".join(
        (
            f'<header><p class="kicker">Ensemble</p><h1>{escape(title)}</h1></header>',
            elements.section(_name(record), f'<div class="cards">{_cards(record)}</div>', NOTES[record["how"]]),
            elements.section("Validation split", f'<div class="figures">{elements.pictures(light, dark)}</div>',
                             "The bars do not begin at 0."),
            elements.section("Members", _table(record), _statistics(record)),
            elements.section("Turns", _order(record), "Members in the order of their own figures; each joins if the "
                             "soup's figure does not get worse."),
        )
    )  # fmt: skip
    files.replace(output, shell(title, body).encode())
    return output


def _name(record: dict[str, Any]) -> str:
    return record["metric"].removeprefix("eval/")


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.5g}"


def _values(record: dict[str, Any]) -> list[tuple[str, float | None]]:
    found = [(member["name"], member["scalars"].get(record["metric"])) for member in record["members"]]
    return [*found, (TITLES[record["how"]].lower(), record["scalars"].get(record["metric"]))]


def _cards(record: dict[str, Any]) -> str:
    *members, (_, made) = _values(record)
    # A member whose metric is not finite counts neither as the best nor in the mean.
    known = sorted(value for _, value in members if value is not None)
    best = (known[-1] if record["better"] == "more" else known[0]) if known else None
    cards = [elements.card(TITLES[record["how"]], _number(made), f"{record['better']} is better")]
    cards.append(elements.card("Best member", _number(best), f"of {len(members)}"))
    if known:
        cards.append(elements.card("Mean of the members", _number(sum(known) / len(known)), "each evaluated alone"))
    if "order" in record:
        kept = sum(one["kept"] for one in record["order"])
        cards.append(elements.card("In the soup", f"{kept} of {len(members)}", "members"))
    return "".join(cards)


def _statistics(record: dict[str, Any]) -> str:
    if not record.get("recomputed"):
        return ""
    return f"Batch statistics recomputed over training batches (arXiv:1803.05407): {len(record['recomputed'])}."


def _table(record: dict[str, Any]) -> str:
    first = record["metric"]
    names = [first, *(name for name in record["scalars"] if name != first)][:COLUMNS]
    rows = [(member["name"], member["scalars"]) for member in record["members"]]
    rows.append((TITLES[record["how"]].lower(), record["scalars"]))
    heads = ("Member", *(name.removeprefix("eval/") for name in names))
    return elements.table(heads, [[name, *(_number(found.get(key)) for key in names)] for name, found in rows])


def _order(record: dict[str, Any]) -> str:
    if "order" not in record:
        return ""
    rows = [
        (one["name"], _number(one["alone"]), _number(one["value"]), "joins" if one["kept"] else "stays out")
        for one in record["order"]
    ]
    return elements.table(("Member", "Alone", "Soup with it", ""), rows)


# ------------------------------------------------------------ figures


def _bars(record: dict[str, Any], theme: Theme):
    shown = [(name, value) for name, value in _values(record) if value is not None]
    if not shown:
        return None
    figure, axes = new_axes(theme, "Members and ensemble", _name(record), height=1.6 + 0.36 * len(shown))
    values = [value for _, value in shown]
    spread = (max(values) - min(values)) or abs(values[0]) or 1.0
    # The axis begins below the smallest value, so that small differences show.
    low = min(values) - 0.35 * spread
    for at, (name, value) in enumerate(reversed(shown)):
        color = theme.series[1] if name == TITLES[record["how"]].lower() else theme.series[0]
        axes.barh(at, value - low, left=low, height=0.6, color=color)
        axes.text(value, at, f" {value:.5g}", va="center", color=theme.ink, fontsize=10)
    # A horizontal bar chart counts upwards, so the reversed list puts the first member on top.
    axes.set_yticks(range(len(shown)), [_short(name) for name, _ in reversed(shown)])
    axes.set_xlim(low, max(values) + 0.45 * spread)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(f"{_name(record)} ({record['better']} is better)")
    return figure


def _short(name: str) -> str:
    name = Path(name).name or name
    return name if len(name) <= 24 else f"{name[:10]}…{name[-12:]}"


def _turns(record: dict[str, Any], theme: Theme):
    turns = [one for one in record.get("order", ()) if one["value"] is not None]
    if not any(one["kept"] for one in turns):
        return None
    figure, axes = new_axes(theme, "The soup, turn by turn", "turn")
    kept = [(at, one["value"]) for at, one in enumerate(turns, 1) if one["kept"]]
    out = [(at, one["value"]) for at, one in enumerate(turns, 1) if not one["kept"]]
    # The soup keeps its value until the next member joins.
    axes.step(*zip(*kept, strict=True), where="post", color=theme.series[1], linewidth=2)
    axes.plot(*zip(*kept, strict=True), "o", color=theme.series[1], label="joins")
    if out:
        axes.plot(*zip(*out, strict=True), "o", color=theme.muted, fillstyle="none", label="stays out")
    axes.plot(range(1, len(turns) + 1), [one["alone"] for one in turns], "x", color=theme.series[0], label="alone")
    axes.set_xticks(range(1, len(turns) + 1))
    axes.set_ylabel(_name(record))
    axes.legend(frameon=False, fontsize=10)
    return figure
