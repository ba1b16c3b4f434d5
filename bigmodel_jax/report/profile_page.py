"""Write profile.html: where the time of a step went, beside the roofline.

The time is split by kind, module, pass and operation.
"""

import json
import logging
import shlex
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bigmodel_jax.core import files
from bigmodel_jax.report import elements
from bigmodel_jax.report.plot_style import DARK, LIGHT, Theme, new_axes, render
from bigmodel_jax.report.shell import shell

log = logging.getLogger(__name__)

FILE, PAGE, TRACE = "profile.json", "profile.html", "profile"  # the record, the page and the trace's folder
SHOWN = 12  # most bars of a figure
NOTE = (
    "Each moment is divided among the operations that run in it, so the parts sum to the time of a step. Waiting is the "
    "time in which the device runs nothing."
)


def read(run_dir: Path) -> dict[str, Any] | None:
    """The profile in a run's folder; None if there is none or it is damaged."""
    try:
        found = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("kinds") else None


def build_profile_page(record: dict[str, Any], output: Path) -> Path:
    """Write the page of a profile.json record. Returns `output`."""
    figures: dict[str, Callable] = {name: _bars(name) for name in ("kinds", "modules", "passes")}
    light, dark = (render(figures, record, theme) for theme in (LIGHT, DARK))
    body = "".join(
        (
            f'<header><p class="kicker">Profile</p><h1>{escape(record["name"])}</h1>{_facts(record)}</header>',
            f'<div class="cards">{"".join(_cards(record))}</div>',
            elements.section("By kind", _stack(record, "kinds"), NOTE),
            elements.section(
                "Time and roofline",
                f'<div class="figures">{elements.pictures(light, dark)}</div>',
                roofline_note(record),
            ),
            elements.section("Modules", table(record, "modules")),
            elements.section(
                "Operations", _operations(record), "The operations that take most of a step, the longest first."
            ),
            elements.section("Open the trace", _open(output.parent / TRACE), _open_note()),
        )
    )
    files.replace(output, shell(f"Profile of {record['name']}", body).encode())
    return output


def section(run_dir: Path) -> str:
    """The profile's section on a run's own page: the bar by kind. It is empty without a profile."""
    record = read(run_dir)
    if record is None:
        return ""
    note = f"Steps {record['window']}; {PAGE} in the run's folder has modules and operations."
    return elements.section("Profile", _stack(record, "kinds"), note)


def rows(record: dict[str, Any], name: str) -> list[list[str]]:
    """Rows of texts for the page and the terminal.

    Columns: name, time, share, roofline, multiple of the roofline.
    """
    return [
        [
            one["name"],
            milliseconds(one["seconds"]),
            f"{100 * one['seconds'] / record['step_seconds']:.1f}\u00a0%",
            milliseconds(one["roofline"]) if one["roofline"] else "",
            _ratio(one),
        ]
        for one in record[name]
    ]


def heads(first: str) -> tuple[str, ...]:
    """The heads of the columns of `rows`. `first` is the head of the first column."""
    return (first, "A step", "Share", "Roofline", "×\u00a0roofline")


def table(record: dict[str, Any], name: str) -> str:
    """The HTML table of the record's modules or kinds."""
    return elements.table(heads("Module" if name == "modules" else "Kind"), rows(record, name))


def roofline_note(record: dict[str, Any]) -> str:
    """A sentence on the roofline: what it predicts, which rates it uses, and what it leaves out."""
    note = f"Roofline: the time of arithmetic and memory at peak rates, counted as plan does. Rates: {record['rates']}."
    if record["roofline_seconds"] is None:
        note += " The program does not say how often some loop runs, so parts of it have no prediction."
    note += " It is not a lower bound where arrays stay in a cache."
    if any(one["name"] == "collectives" for one in record["kinds"]):
        note += " It leaves out networks; plan predicts collectives for a topology."
    return note


def milliseconds(seconds: float) -> str:
    """Seconds as text, in ms or s, with a space that does not break."""
    if seconds < 1e-6:
        return "< 0.001\u00a0ms" if seconds else "0\u00a0ms"
    return f"{1000 * seconds:.3g}\u00a0ms" if seconds < 1 else f"{seconds:.3g}\u00a0s"


def _ratio(one: dict[str, Any]) -> str:
    ratio = one["seconds"] / one["roofline"] if one["roofline"] else 0.0
    return f"{ratio:.1f}" if 0 < ratio < 1000 else ""


def _facts(record: dict[str, Any]) -> str:
    several = f" of {record['devices']}, of process 0 of {record['processes']}" if record["devices"] > 1 else ""
    text = f"Steps {record['window']} · {record['machine']}, device {record['device']}{several}"
    return f'<p class="facts"><span>{escape(text)}</span></p>'


def _cards(record: dict[str, Any]) -> list[str]:
    step, least, wait = record["step_seconds"], record["roofline_seconds"], record["data_wait_seconds"]
    idle = sum(one["seconds"] for one in record["kinds"] if one["name"] == "waiting")
    cards = [elements.card("Step", milliseconds(step), f"mean of {record['steps']} steps")]
    if least:
        cards.append(elements.card("Roofline", milliseconds(least), f"the step takes {step / least:.1f} times as long"))
    else:
        cards.append(elements.card("Roofline", "unknown", "the program does not state some loop's length"))
    cards.append(elements.card("Device waits", f"{100 * idle / step:.1f}\u00a0%", "of a step, for any reason"))
    cards.append(elements.card("Data", f"{100 * wait / step:.1f}\u00a0%", "of a step the host waited for a batch"))
    if record["runs"]:
        shortest, longest = (milliseconds(find(record["runs"])) for find in (min, max))
        cards.append(elements.card("Runs", f"{len(record['runs'])}", f"of the program: {shortest} to {longest}"))
    return cards


def _stack(record: dict[str, Any], name: str) -> str:
    step = record["step_seconds"]
    return elements.stacked(
        [(one["name"], one["seconds"] / step, milliseconds(one["seconds"])) for one in record[name]]
    )


def _bars(name: str) -> Callable:
    def draw(record: dict[str, Any], theme: Theme):
        # A horizontal bar chart counts upwards, so the longest bar comes last in the list.
        shown = sorted(record[name], key=lambda one: -one["seconds"])[:SHOWN][::-1]
        figure, axes = new_axes(theme, f"By {_SINGULAR[name]}", "ms a step", height=1.4 + 0.36 * len(shown))
        places = range(len(shown))
        axes.barh(
            places, [1000 * one["seconds"] for one in shown], color=theme.series[0], height=0.62, label="measured"
        )
        predicted = [(i, 1000 * one["roofline"]) for i, one in enumerate(shown) if one["roofline"]]
        if predicted:
            at, least = zip(*predicted, strict=True)
            axes.barh(at, least, color=theme.series[1], height=0.22, label="roofline")
            axes.legend(frameon=False, loc="lower right")
        axes.set_yticks(list(places), [one["name"] for one in shown])
        axes.grid(False, axis="y")
        return figure

    return draw


_SINGULAR = {"kinds": "kind", "modules": "module", "passes": "pass"}


def _operations(record: dict[str, Any]) -> str:
    heads_ = ("Operation", "Module", "Kind", "Line", "A step", "Share", "×\u00a0roofline")
    found = [
        [
            f"{one['operation']}{_phase(one)} ({one['name']})",
            one["module"],
            one["kind"],
            one["source"],
            milliseconds(one["seconds"]),
            f"{100 * one['seconds'] / record['step_seconds']:.1f}\u00a0%",
            _ratio(one),
        ]
        for one in record["operations"]
    ]
    return elements.table(heads_, found)


def _phase(one: dict[str, Any]) -> str:
    return f", {one['pass']}" if one["pass"] in ("backward", "recomputed") else ""


def _open(folder: Path) -> str:
    return "".join(_command(text) for text in commands(folder))


def commands(folder: Path) -> Sequence[str]:
    """Shell commands that open the trace."""
    where = shlex.quote(str(folder))
    return (f"uvx --from xprof xprof --logdir {where} --port 8791", f"ls {where}/plugins/profile/*/*.trace.json.gz")


def _command(text: str) -> str:
    return elements.panel(f'<div class="command"><code>{escape(text)}</code><button>Copy</button></div>')


def _open_note() -> str:
    return (
        "XProf reads the folder (TensorBoard does, too, where its plugin tensorboard-plugin-profile is installed); "
        "ui.perfetto.dev opens the .trace.json.gz file that the second command names."
    )
