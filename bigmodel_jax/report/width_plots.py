"""Draw models of several widths: losses by learning rate, and activations by width.

Each parametrization has its own panel.
"""

import functools

from bigmodel_jax.report.plot_style import Theme, render

FORMS = {"standard": "Standard", "mup": "μP"}
Curves = dict[str, dict[int, list[tuple[float, float]]]]  # {form: {width or step: points (x, y)}}


def transfer(curves: Curves, theme: Theme) -> bytes:
    """A PNG of losses by learning rate, one curve per width, with each curve's best marked."""
    return _drawn(functools.partial(_panels, best=True), curves, theme, ("learning rate", "loss", "width"))


def coordinates(curves: Curves, theme: Theme, name: str) -> bytes:
    """A PNG of the size of activations by width, one curve per step."""
    return _drawn(_panels, curves, theme, ("times the base's widths", f"mean |{name}|", "after step"))


def _drawn(make, curves: Curves, theme: Theme, names: tuple[str, str, str]) -> bytes:
    return render({"widths": functools.partial(make, names=names)}, curves, theme)["widths"]


def _panels(curves: Curves, theme: Theme, names: tuple[str, str, str], best: bool = False):
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    figure = Figure(figsize=(6, 3.4))
    x_name, y_name, curve_name = names
    for axes, (form, by_curve) in zip(
        figure.subplots(1, len(curves), sharey=True, squeeze=False)[0], curves.items(), strict=True
    ):
        for color, (label, points) in zip(theme.series[: len(by_curve)], by_curve.items(), strict=True):
            axes.plot(*zip(*points, strict=True), color=color, linewidth=2, label=f"{curve_name} {label}")
            if best:
                axes.plot(*min(points, key=lambda point: point[1]), color=color, marker="o", markersize=7)
        axes.set_title(FORMS[form], loc="left", fontsize=13, weight="bold")
        # Multiples of a width are read in powers of two, rates in powers of ten.
        axes.set_xscale("log", base=2 if not best else 10)
        axes.set_xlabel(x_name)
        if not best:
            axes.set_yscale("log")
        else:
            axes.xaxis.set_major_locator(LogLocator(10))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
    figure.axes[0].set_ylabel(y_name)
    figure.axes[0].legend(frameon=False, fontsize=9)
    return figure
