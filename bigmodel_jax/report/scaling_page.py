"""Write scale.html: throughput, efficiency, MFU and bytes by number of devices."""

from html import escape
from pathlib import Path

from bigmodel_jax.core import files
from bigmodel_jax.report import elements
from bigmodel_jax.report.plot_style import DARK, LIGHT, Theme, label_ends, new_axes, percent_ticks, render, short_tick
from bigmodel_jax.report.scaling import COLUMNS, Series, efficiency, read_records, row, series_of, verdict
from bigmodel_jax.report.shell import shell


def build_scaling_page(run_dirs: list[Path], output: Path) -> Path:
    """Write the page of one or several benchmarks. Returns `output`.

    For a single benchmark it also writes plots/*.png into its folder.
    """
    several = len(run_dirs) > 1
    found = [(Path(d), read_records(d)) for d in run_dirs]
    series = [s for d, records in found for s in series_of(records, f"{d.name}: " if several else "")]
    light, dark = (render(FIGURES, series, theme) for theme in (LIGHT, DARK))
    if not several:
        folder = found[0][0] / "plots"
        folder.mkdir(exist_ok=True)
        for name, png in light.items():
            files.replace(folder / f"{name}.png", png)
    title = found[0][0].name if not several else f"{len(found)} scaling benchmarks"
    files.replace(output, shell(title, _body(title, found, series, light, dark)))
    return output


def _body(title, found, series: list[Series], light, dark) -> str:
    header = f'<header><p class="kicker">Scaling</p><h1>{escape(title)}</h1></header>'
    verdicts = "".join(f"<li>{escape(verdict(s))}</li>" for s in series)
    environments = "".join(
        elements.folded(folder.name, source, elements.definitions(facts))
        for folder, records in found
        for source, facts in _environments(records).items()
    )
    return "".join(
        (
            header,
            elements.section("Where it stops", elements.panel(f"<ul>{verdicts}</ul>")),
            elements.section("Curves", f'<div class="figures">{elements.pictures(light, dark)}</div>', NOTE),
            elements.section("Points", _table(series)),
            elements.section("Environment", elements.panel(environments)),
        )
    )


NOTE = (
    "Points are medians of timing windows that begin and end with an idle device, after a warm-up. Hollow points are planned, "
    "not measured, from the machine's own compiler and published rates. Devices and throughput are on logarithmic axes. "
    "Dashed: ideal scaling from the fewest devices. MFU refers to one peak for all points, measured once before them or "
    "taken from the data sheet. Bytes: what one device moves in a step, by mesh axis, according to the compiled program."
)


def _environments(records) -> dict[str, dict]:
    """What the points ran on, once per source."""
    out = {}
    for record in records:
        facts = {k: v for k, v in record.get("environment", {}).items() if v and not isinstance(v, dict)}
        out.setdefault(record["source"], facts | record.get("environment", {}).get("packages", {}))
    return out


def _table(series: list[Series]) -> str:
    rows = (row(s.name, *point) for s in series for point in zip(s.records, efficiency(s), strict=True))
    return elements.table(COLUMNS, rows)


# ---- figures: (series, theme) -> Figure, or None ----


def throughput_figure(series: list[Series], theme: Theme):
    """Throughput by number of devices, beside ideal scaling."""
    from matplotlib.ticker import LogLocator

    figure, axes = _device_axes(series, theme, f"Throughput, {series[0].records[0]['unit']} per second (log scale)")
    labels = []
    for i, s in enumerate(series):
        color = theme.series[i % len(theme.series)]
        counts = [r["devices"] for r in s.records]
        rates = [r["tokens_per_second"] for r in s.records]
        axes.plot(
            counts, [rates[0] * n / counts[0] for n in counts], color=color, linewidth=1, linestyle="--", alpha=0.6
        )
        labels.append(_points(axes, counts, rates, color, s))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(short_tick)
    axes.yaxis.set_minor_formatter("")
    return _legend(figure, axes, labels)


def efficiency_figure(series: list[Series], theme: Theme):
    """Throughput per device relative to the fewest devices."""
    figure, axes = _device_axes(series, theme, "Efficiency relative to the fewest devices")
    labels = []
    for i, s in enumerate(series):
        counts = [r["devices"] for r in s.records]
        labels.append(_points(axes, counts, efficiency(s), theme.series[i % len(theme.series)], s))
    _from_zero(axes)
    return _legend(figure, axes, labels)


def mfu_figure(series: list[Series], theme: Theme):
    """MFU by number of devices."""
    figure, axes = _device_axes(series, theme, "MFU")
    labels = []
    for i, s in enumerate(series):
        counts, shares = [r["devices"] for r in s.records], [r["mfu"] for r in s.records]
        labels.append(_points(axes, counts, shares, theme.series[i % len(theme.series)], s))
    _from_zero(axes)
    return _legend(figure, axes, labels)


def bytes_figure(series: list[Series], theme: Theme):
    """Stacked bars of moved bytes: one bar per point, one colour per mesh axis."""
    bars = [(f"{r['devices']}", r["bytes_by_axis"]) for s in series for r in s.records]
    names = sorted({axis for _, moved in bars for axis in moved})
    if not names:
        return None
    figure, axes = new_axes(theme, "Moved by one device in a step, MiB", xlabel="devices")
    bottom = [0.0] * len(bars)
    for i, name in enumerate(names):
        heights = [moved.get(name, 0) / 2**20 for _, moved in bars]
        axes.bar(range(len(bars)), heights, bottom=bottom, color=theme.series[i % len(theme.series)], label=name)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    axes.set_xticks(range(len(bars)), [text for text, _ in bars])
    axes.legend(frameon=False)
    return figure


FIGURES = {
    "throughput": throughput_figure,
    "efficiency": efficiency_figure,
    "mfu": mfu_figure,
    "bytes": bytes_figure,
}


def _device_axes(series: list[Series], theme: Theme, title: str):
    figure, axes = new_axes(theme, title, xlabel="devices (logarithmic scale)")
    counts = sorted({r["devices"] for s in series for r in s.records})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [f"{n:,}" for n in counts])
    # Ticks stand at the measured numbers. Minor ticks between powers of two mean nothing here.
    axes.minorticks_off()
    return figure, axes


def _from_zero(axes) -> None:
    """A percent scale from 0, with room above the highest point."""
    axes.set_ylim(0.0, 1.1 * max(y for line in axes.lines for y in line.get_ydata()))
    percent_ticks(axes.yaxis)


def _points(axes, x, y, color: str, series: Series) -> tuple[float, str, str]:
    """Draw a curve through the points, hollow if planned. Returns a label for `label_ends`."""
    face = "none" if series.records[0]["source"] == "planned" else color
    axes.plot(x, y, color=color, linewidth=2, marker="o", markersize=6, markerfacecolor=face, label=series.name)
    return float(y[-1]), series.name, color


def _legend(figure, axes, labels):
    """Writes names at the ends of the curves, or a legend if the scale is logarithmic or a name
    long.

    `label_ends` places its names on a linear scale.
    """
    if axes.get_yscale() == "linear" and max(len(text) for _, text, _ in labels) <= 12:
        return label_ends(figure, axes, labels)
    axes.legend(frameon=False, fontsize=10)
    return figure
