"""Show a run's loss spikes on its page: marks in the curves, and a table."""

from bigmodel_jax.report import elements
from bigmodel_jax.report.plot_style import Theme

SHOWN = 20  # most rows of the table, the newest


def mark(axes, theme: Theme, spikes: list[dict]) -> None:
    """A dotted line at each spike's step. The first is labelled."""
    for number, spike in enumerate(spikes):
        axes.axvline(spike["step"], color=theme.series[5], linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
        # Only one spike has a label, because the labels of neighbouring spikes would overlap.
        if not number:
            place = {"xytext": (4, -4), "textcoords": "offset points", "va": "top", "fontsize": 10}
            at = (spike["step"], 1.0)
            axes.annotate("spike", at, xycoords=axes.get_xaxis_transform(), color=theme.series[5], **place)


def table(records: list[dict]) -> str:
    """A table of the newest spikes; "" without any."""
    if not records:
        return ""
    heads = ("Step", "Loss", "Gradient norm", "Deviations", "Done")
    return elements.table(heads, map(_row, records[: -SHOWN - 1 : -1]), "classes")


def _row(record: dict) -> tuple[str, ...]:
    numbers = (f"{record[name]:.4g}" for name in ("loss", "grad_norm", "deviations"))
    return f"{record['step']:,}", *numbers, _done(record["back_to"])


def _done(back_to: int | None) -> str:
    return "skipped" if back_to is None else f"back to step {back_to:,}"
