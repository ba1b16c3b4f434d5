"""Draw a plan: where a device's memory goes, and where a step's time goes."""

import itertools

from bigmodel_jax.report.plot_style import Theme, new_axes, render

GIB = 2.0**30
# Parts of a device's memory, in the order in which the bar stacks them.
PARTS = ("base", "adapters", "parameters", "constants", "average", "optimizer", "rollout_cache")
PARTS += ("weights", "cache", "gradients", "activations", "temporaries", "batch", "program")


def draw(plan: dict, theme: Theme) -> dict[str, bytes]:
    """PNGs by name. A program that was refused has no figure of its time."""
    return render({"memory": memory, "time": time, "collectives": collectives}, plan, theme)


def memory(plan: dict, theme: Theme):
    """One bar of what a device's memory holds, and its limit."""
    if "parts" not in plan["memory"]:
        return None
    parts, limit = plan["memory"]["parts"], plan["memory"]["limit"] / GIB
    figure, axes = new_axes(theme, "Memory of a device", "GiB", height=3.5)
    # A part below 0.2 % is thinner than a pixel or two and would only fill the legend.
    shown = [name for name in PARTS if parts.get(name, 0) > 0.002 * plan["memory"]["used"]]
    unit, suffix, columns = (GIB, "", 3) if plan["memory"]["used"] >= GIB else (2.0**20, " MiB", 2)
    start = 0.0
    for name, color in zip(shown, itertools.cycle(theme.series)):
        size = parts[name] / GIB
        axes.barh(0, size, left=start, height=0.5, color=color, label=f"{name} {parts[name] / unit:.2f}{suffix}")
        start += size
    axes.axvline(limit, color=theme.ink, linewidth=2)
    axes.text(limit, 0.36, f"{limit:.2f} ", ha="right", va="bottom", color=theme.ink, weight="bold")
    axes.set_xlim(0, 1.03 * max(limit, start))
    axes.set_ylim(-0.4, 0.6)
    axes.set_yticks([])
    axes.legend(ncols=columns, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.27), fontsize=10.5)
    return figure


def time(plan: dict, theme: Theme):
    """The time that each resource would take alone, and the predicted step."""
    return resources(plan, plan, "Time of a step", theme)


def resources(plan: dict, program: dict, title: str, theme: Theme):
    """Bars of each resource's time for one program of a plan; None if it was refused."""
    if "roofline" not in program:
        return None
    line = program["roofline"]
    gpu = plan["chip"]["platform"] == "cuda"
    # If the compiler expects no more time than the peak rates give, its bar would say nothing new.
    as_compiled = {"expected": "both, as compiled"} if line["expected"] > line["busy"] else {}
    names = {
        "compute": "compute",
        "hbm": "HBM",
        **as_compiled,
        "ici": "NVLink" if gpu else "between chips",
        "dcn": "network" if gpu else "between slices",
        "step": "predicted step",
    }
    shown = [(text, line[name]) for name, text in names.items() if line[name]]
    return _bars(theme, title, shown, last=True)


def collectives(plan: dict, theme: Theme):
    """The time of the slowest collectives by mesh axes; None without any."""
    rows = plan.get("collectives", [])[:6]
    if not rows:
        return None
    # If all rows have the same network, no row names it.
    several = len({row["network"] for row in rows}) > 1
    shown = [
        (f"{row['kind']} {' x '.join(row['axes'])}{_network(row) if several else ''}", row["seconds"]) for row in rows
    ]
    return _bars(theme, "Collectives by mesh axis", shown)


def _network(row: dict) -> str:
    return f", {row['network'].upper()}"


def _bars(theme: Theme, title: str, rows: list[tuple[str, float]], *, last: bool = False):
    """One bar per row, in milliseconds unless a row takes more than ten seconds."""
    scale, unit = (1.0, "seconds") if max(seconds for _, seconds in rows) > 10.0 else (1000.0, "milliseconds")
    rows = [(name, scale * seconds) for name, seconds in rows]
    figure, axes = new_axes(theme, title, unit, height=1.4 + 0.36 * len(rows))
    colors = [theme.series[0]] * len(rows)
    colors[-1] = theme.series[1] if last else colors[-1]
    places = range(len(rows))[::-1]
    axes.barh(places, [value for _, value in rows], height=0.62, color=colors)
    longest = max(value for _, value in rows)
    for place, (_, value) in zip(places, rows, strict=True):
        text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        axes.text(value + 0.01 * longest, place, text, va="center", color=theme.muted, fontsize=11)
    axes.set_yticks(places, [name for name, _ in rows])
    axes.set_xlim(0, 1.2 * longest)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="y", visible=False)
    return figure
