"""Write rate.html: the curve of a learning-rate range test and the suggested rate."""

from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.report import elements
from bigmodel_jax.report.plot_style import DARK, LIGHT, Theme, new_axes, render
from bigmodel_jax.report.shell import shell

RECORD = "rate.json"
NOTE = (
    "Each step trains on another batch, at a higher rate than the step before. Dots: the loss of each batch. Line: the loss "
    "smoothed over neighbouring rates. The loss is lowest at the largest rate that still trains. A whole run trains best "
    "somewhat below it (Smith, arXiv:1506.01186, section 3.3), so a third of it is suggested. The best rate also depends on "
    "the schedule and length of the run: with a schedule that falls to 0 it may be twice the suggestion, with a constant "
    "rate a third of it."
)
MEANING = {
    "optim.schedule": "the schedule is constant",
    "optim.warmup_steps": "no warm-up",
    "optim.warmup_share": "no warm-up",
    "optim.ema_decay": "no average",
    "train.spikes.action": "no spike is skipped",
}


def build_rate_page(record: dict[str, Any], output: Path) -> Path:
    """Write the page of a `rate.json` record. Returns `output`."""
    light, dark = (render({"loss_over_rate": curve}, record, theme) for theme in (LIGHT, DARK))
    said = (f"<b>{len(record['rates'])}</b> of {record['steps']} steps", escape(record["ended"]))
    spans = "".join(f"<span>{text}</span>" for text in said)
    pictures, facts = elements.pictures(light, dark), elements.panel(elements.definitions(_facts(record)))
    body = "".join(
        (
            f'<header><p class="kicker">Learning-rate range test</p><h1>{escape(record["name"])}</h1>',
            f'<p class="facts">{spans}</p></header>',
            f'<div class="cards">{"".join(_cards(record))}</div>',
            elements.section("Train at the suggested rate", _command(record)),
            elements.section("Curve", f'<div class="figures">{pictures}{facts}</div>', NOTE),
        )
    )
    files.replace(output, shell(record["name"], body))
    return output


def _cards(record: dict[str, Any]) -> list[str]:
    if record["rate"] is None:
        return [elements.card("Suggested rate", "–", "the loss fell by no more than its noise")]
    more = "; still falling at the highest rate" if record["at_end"] else ""
    return [
        elements.card("Suggested rate", f"{record['rate']:.2g}", "a third of the rate of the lowest loss"),
        elements.card("Lowest loss", f"{record['lowest_loss_rate']:.2g}", f"the largest rate that still trains{more}"),
        elements.card("Steepest descent", f"{record['steepest']:.2g}", "a choice of other range tests"),
        elements.card("The config's rate", f"{record['config_rate']:.2g}", "optim.lr"),
    ]


def _command(record: dict[str, Any]) -> str:
    if not record["options"]:
        return ""
    text = f"python launch.py train {record['command']} {record['options']}"
    return elements.panel(f'<div class="command"><code>{escape(text)}</code><button>Copy</button></div>')


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    span = f"{record['lowest']:g} to {record['highest']:g}, each a constant factor above the one before"
    held = {
        name: f"{value}; in the test {MEANING.get(name, 'all layers train')}"
        for name, value in record["changed"].items()
    }
    return {
        "Rates": span,
        "Steps": record["steps"],
        "Optimizer": record["optimizer"],
        "Batch": f"{record['batch_size']:,} rows",
    } | held


def curve(record: dict[str, Any], theme: Theme):
    """The losses and the smoothed loss by learning rate, with the suggestion marked."""
    rates, losses, smoothed = (np.array(record[name], float) for name in ("rates", "losses", "smoothed"))
    if len(rates) < 2:
        return None
    figure, axes = new_axes(theme, "Loss over the learning rate", xlabel="learning rate", height=4)
    axes.set_xscale("log")
    axes.plot(rates, losses, "o", color=theme.muted, markersize=3, alpha=0.6)
    end = _breaks_down(smoothed)
    axes.plot(rates[:end], smoothed[:end], color=theme.series[0], linewidth=2.2)
    _limits(axes, losses, smoothed)
    if record["rate"] is not None:
        low, top = axes.get_ylim()
        at = record["rate"]
        axes.axvline(at, color=theme.series[1], linewidth=1.4)
        # The interpolation is linear in the logarithm, because the rates are a geometric series.
        axes.plot(at, np.interp(np.log(at), np.log(rates), smoothed), "o", color=theme.series[1], markersize=9)
        axes.text(at, top, f"suggested {at:.2g} ", color=theme.series[1], weight="bold", ha="right", va="top")
        lowest = record["lowest_loss_rate"]
        axes.axvline(lowest, color=theme.muted, linewidth=1.2, linestyle="--")
        axes.text(lowest, low, " lowest", color=theme.muted, ha="left", va="bottom", fontsize=11)
    return figure


def _breaks_down(smoothed: np.ndarray) -> int:
    """How many rates to draw: up to the first one at which training has broken down.

    At that rate, which is above the rate of the lowest loss, the smoothed loss exceeds all values
    in the first tenth of the test.
    """
    least, first = int(np.argmin(smoothed)), smoothed[: max(len(smoothed) // 10, 1)].max()
    above = np.flatnonzero(smoothed[least:] > first)
    return least + int(above[0]) + 1 if len(above) else len(smoothed)


def _limits(axes, losses: np.ndarray, smoothed: np.ndarray) -> None:
    """Let the loss leave through the top of the axes where training breaks down.

    The high losses there would flatten the rest of the curve.
    """
    first = smoothed[: max(len(smoothed) // 10, 1)]
    low, high = min(losses.min(), smoothed.min()), max(first.max(), losses[: len(first)].max())
    high = max(high, low + 1.5 * (high - smoothed.min()))
    margin = 0.06 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
