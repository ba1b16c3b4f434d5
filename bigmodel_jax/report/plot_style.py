"""The common style of all figures.

Figures are made without pyplot, so there is no global state, display or window. They are 6 inches
wide with 12-point type, which stays legible at 360 pixels on a phone. Importing matplotlib takes
half a second, so only functions that draw import it.
"""

import dataclasses
import io
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

DPI = 160  # times 6 inches: 960 pixels


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a figure.

    series: colours of runs side by side. The first two are for training and evaluation.
    """

    ink: str
    muted: str
    grid: str
    paper: str
    series: tuple[str, ...]


LIGHT = Theme(
    ink="#1b1f24",
    muted="#5f6b7a",
    grid="#e4e7eb",
    paper="#ffffff",
    series=("#2f5bd7", "#d9620f", "#16866a", "#a33bbd", "#b8860b", "#c22f4f", "#4b5563", "#0e7fa8", "#8a5a2b"),
)
DARK = Theme(
    ink="#e8eaed",
    muted="#9aa5b4",
    grid="#2b3038",
    paper="#16191e",
    series=("#86a8ff", "#ffa260", "#4fd0ab", "#dd92f0", "#e5c04f", "#ff8fa5", "#b4bcc8", "#63c7ec", "#d9b08c"),
)


def smooth(values: np.ndarray) -> np.ndarray:
    """A centred moving average over about a thirtieth of the curve.

    The window narrows at both ends, so the smoothed curve has no lag.
    """
    half = min(len(values) // 60 + 1, (len(values) - 1) // 2)
    at = np.arange(len(values))
    # The nearer end of the curve limits the window at each point.
    reach = np.minimum(half, np.minimum(at, at[::-1]))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    # The sum over a window is the difference of two cumulative sums.
    return (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)


def render(figures: dict[str, Callable], subject: Any, theme: Theme) -> dict[str, bytes]:
    """Draw each of `figures` (functions of subject and theme) as PNG bytes.

    The result has no entry for figures that return None.
    """
    # Imported here, so that commands without figures start sooner.
    import matplotlib

    pictures = {}
    with matplotlib.rc_context(_style(theme)):
        for name, make in figures.items():
            if (figure := make(subject, theme)) is not None:
                file = io.BytesIO()
                figure.savefig(file, format="png", dpi=DPI)
                pictures[name] = file.getvalue()
    return pictures


def _style(theme: Theme) -> dict[str, Any]:
    return {
        "font.size": 12,
        "font.family": "DejaVu Sans",  # ships with matplotlib, so figures look the same on every machine
        "text.color": theme.ink,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.grid,
        "axes.facecolor": theme.paper,
        "figure.facecolor": theme.paper,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "axes.grid": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "xtick.major.pad": 6,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "lines.solid_capstyle": "round",
        "figure.constrained_layout.use": True,
    }


def new_axes(theme: Theme, title: str, xlabel: str = "step", height: float = 3.5):
    """A figure with one set of axes, 6 inches wide."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, height))
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=13, weight="bold", pad=10)
    axes.set_xlabel(xlabel)
    axes.margins(x=0.02)
    if xlabel == "step":
        axes.xaxis.set_major_formatter(short_tick)
        axes.locator_params(axis="x", nbins=6, integer=True)
    return figure, axes


def curve(axes, x, y, color: str, text: str, marker: str | None = None) -> tuple[float, str, str]:
    """Draw a curve, and return (last value, text, colour) for `label_ends`.

    A single point gets a marker, since a line of one point is invisible.
    """
    marker = marker or ("o" if len(x) == 1 else None)
    axes.plot(x, y, color=color, linewidth=2, marker=marker, markersize=4.5)
    if len(x) == 1 and len(axes.lines) == 1:
        axes.set_xlim(min(0, x[0] - 1), x[0] + 1)
    return float(y[-1]), text, color


def cut_start(axes, curves: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Let the first twentieth of a loss curve leave through the top of the axes.

    The high losses at the start would flatten the rest of the curve. curves: (training, held-out)
    losses. Curves of fewer than 60 records are shown whole.
    """
    if curves and all(len(train) >= 60 for train, _ in curves):
        later = np.concatenate([np.append(smooth(train)[len(train) // 20 :], held_out) for train, held_out in curves])
        margin = 0.06 * (later.max() - later.min())
        axes.set_ylim(later.min() - margin, later.max() + margin)


def label_ends(figure, axes, labels: list[tuple[float, str, str]]):
    """Write each curve's name at its right end in its colour, without overlaps."""
    axes.get_ylim()  # fixes the limits, on which the positions depend
    labels = sorted(labels)
    half = [0.04 * (1 + text.count("\n")) for _, text, _ in labels]
    scale = min(1.0, 1 / (2 * sum(half)))  # smaller type if the labels are higher than the axes
    to_axes = axes.transData + axes.transAxes.inverted()
    # The ends of the curves, as shares of the axes' height.
    wanted = [to_axes.transform((axes.get_xlim()[1], value))[1] for value, _, _ in labels]
    for place, (_, text, color) in zip(spread(wanted, [scale * h for h in half]), labels, strict=True):
        place = {"y": place, "va": "center", "transform": axes.transAxes}
        axes.text(1.015, s=text, color=color, weight="bold", fontsize=12 * scale, **place)
    return figure


def spread(wanted: list[float], half: list[float]) -> list[float]:
    """Centres of labels within 0 .. 1 that do not overlap, each as near as possible to `wanted`.

    wanted: rising positions. half: half the height of each label.
    """
    offsets = list(itertools.accumulate(a + b for a, b in itertools.pairwise(half)))
    offsets = [0.0, *offsets]
    # After subtracting the labels' heights, labels that touch share one position: the mean of what
    # they want. Blocks that overlap are merged until none does (isotonic regression).
    blocks: list[list[float]] = []
    for place, offset in zip(wanted, offsets, strict=True):
        blocks.append([place - offset])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    points = [float(np.mean(block)) for block in blocks for _ in block]
    low, high = half[0], 1 - half[-1] - offsets[-1]
    return [min(max(point, low), high) + offset for point, offset in zip(points, offsets, strict=True)]


def percent_ticks(axis) -> None:
    """Write an axis's ticks in percent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def short_tick(value: float, _position: int) -> str:
    """Tick text: 800, 1.5k, 20k, 3M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"
