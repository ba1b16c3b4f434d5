"""Draw heat maps over layers and steps of what training/watch.py measured in the network."""

import functools

import numpy as np

from bigmodel_jax.report.history import Run
from bigmodel_jax.report.plot_style import Theme, curve, new_axes, render, short_tick, smooth

PREFIX = "watch/"
# Quantities that are norms, with their titles. The heat map of each has a panel for every kind of
# parameter or activation.
NORMS = {
    "gradients": "Gradient norms",
    "parameters": "Parameter norms",
    "updates": "Update norms",
    "activations": "Activations, root mean square",
}
# Other quantities, with their titles.
ALONE = {
    "attention_entropy": "Attention entropy, nats",
    "dead_units": "Units that no token switches on",
}
OUTSIDE = "outside of the layers"
MOST_ROWS = 24  # a panel grows with its rows up to this number

Panel = tuple[np.ndarray, np.ndarray, list[str]]  # steps (N,), values (rows, N), names of the rows


def draw_watched(run: Run, theme: Theme) -> dict[str, bytes]:
    """{name: PNG} of what was watched; {} for a run that did not watch."""
    figures = {f"watch_{name}": functools.partial(heat_maps, name) for name in (*NORMS, *ALONE)}
    return render(figures | {"watch_noise_scale": noise_figure}, run, theme)


def panels(run: Run, name: str) -> dict[str, Panel]:
    """{kind: panel} with one row per layer.

    Parameters outside of the layers share one panel, with one row each.
    """
    found: dict[str, Panel] = {}
    keys = dict.fromkeys(k for r in run.metrics for k in r if k.startswith(PREFIX))
    for key in keys:
        quantity, _, kind = key.removeprefix(PREFIX).partition("/")
        records = [(r["step"], r[key]) for r in run.metrics if isinstance(r.get(key), list)]
        # Rows of different lengths do not form one array.
        if quantity != name or not records or len({len(row) for _, row in records}) > 1:
            continue
        steps, values = (np.array(x, float) for x in zip(*records, strict=True))
        found[kind] = steps, values.T, [str(n) for n in range(values.shape[1])]
    single = {kind: panel for kind, panel in found.items() if name in NORMS and _is_single(kind, panel)}
    together = {kind: panel for kind, panel in found.items() if kind not in single}
    if single and len({len(steps) for steps, _, _ in single.values()}) == 1:
        steps = next(iter(single.values()))[0]
        together[OUTSIDE] = steps, np.concatenate([values for _, values, _ in single.values()]), list(single)
    return together


def _is_single(kind: str, panel: Panel) -> bool:
    return len(panel[1]) == 1 and "layers/" not in kind


def heat_maps(name: str, run: Run, theme: Theme):
    """The heat map of one quantity; None with fewer than two records."""
    found = {kind: panel for kind, panel in panels(run, name).items() if len(panel[0]) > 1}
    if not found:
        return None
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure

    values = np.concatenate([panel[1].ravel() for panel in found.values()])
    values = values[np.isfinite(values)]
    positive = values[values > 0]
    if name in NORMS and len(positive):
        # The factor keeps the ends of the scale apart where all values are equal.
        norm = LogNorm(positive.min(), max(positive.max(), 1.001 * positive.min()))
    else:
        low = values.min(initial=np.inf) if name == "attention_entropy" else 0.0
        norm = Normalize(low, max(values.max(initial=0), low + 1e-9))
    rows = [min(MOST_ROWS, max(len(panel[1]), 3)) for panel in found.values()]
    heights = [0.45 + max(0.13 * count, 0.2 * min(count, 8)) for count in rows]
    figure = Figure(figsize=(6, 1.1 + sum(heights)))
    axes = figure.subplots(len(found), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    figure.suptitle(NORMS.get(name) or ALONE[name], x=0.01, ha="left", fontsize=13, weight="bold")
    for ax, (kind, panel) in zip(axes, found.items(), strict=True):
        mesh = _panel(ax, theme, panel, norm, _kind_title(kind, name))
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.set_major_formatter(short_tick)
    # All panels share one norm, so the colour bar of the last panel is right for all of them.
    figure.colorbar(mesh, ax=list(axes), fraction=0.04, pad=0.02).outline.set_visible(False)
    return figure


def _kind_title(kind: str, name: str) -> str:
    if kind == OUTSIDE or not kind:
        return kind
    return f"{kind.replace('layers/', '')}, by layer" if name in NORMS else f"call {int(kind) + 1} of each layer"


def _panel(ax, theme: Theme, panel: Panel, norm, title: str):
    steps, values, names = panel
    # The edges of cells lie halfway between recorded steps.
    middle = (steps[1:] + steps[:-1]) / 2
    edges = np.concatenate([[2 * steps[0] - middle[0]], middle, [2 * steps[-1] - middle[-1]]])
    mesh = ax.pcolormesh(edges, np.arange(len(values) + 1), values, norm=norm, cmap="viridis", rasterized=True)
    # At most eight names fit beside a panel without overlap.
    every = -(-len(names) // 8)
    ax.set_yticks(np.arange(len(names))[::every] + 0.5, names[::every], fontsize=11)
    ax.invert_yaxis()
    ax.grid(visible=False)
    if title:
        ax.set_title(title, loc="left", fontsize=11, color=theme.muted, pad=3)
    return mesh


def noise_figure(run: Run, theme: Theme):
    """The gradient noise scale by step, as the ratio of two running means.

    The ratio of single steps would be mostly noise (arXiv:1812.06162, A.1).
    """
    (steps, variance), (_, signal) = run.series(f"{PREFIX}gradient_variance"), run.series(f"{PREFIX}gradient_signal")
    if len(steps) < 2 or len(variance) != len(signal):
        return None
    scale = smooth(variance) / np.where(smooth(signal) > 0, smooth(signal), np.nan)
    if not np.isfinite(scale).any():
        return None
    figure, axes = new_axes(theme, "Gradient noise scale, rows")
    curve(axes, steps, np.where(scale > 0, scale, np.nan), theme.series[0], "")
    axes.set_yscale("log")
    return figure
