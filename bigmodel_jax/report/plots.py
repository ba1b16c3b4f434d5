"""The figures of one run.

Each figure is a function (run, theme) -> Figure, or None if the run has nothing to draw.
"""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.report import spike_marks, watch_plots
from bigmodel_jax.report.class_plots import confusion_figure, per_class_figure
from bigmodel_jax.report.declared import is_share
from bigmodel_jax.report.history import Run, levels, loss_unit, unit
from bigmodel_jax.report.mixture_plots import GIVEN, epochs_by_part_figure, loss_by_part_figure, share_by_part_figure
from bigmodel_jax.report.plot_style import (
    Theme,
    curve,
    cut_start,
    label_ends,
    new_axes,
    percent_ticks,
    render,
    short_tick,
    smooth,
)
from bigmodel_jax.report.score_plots import (
    calibration_figure,
    groups_figure,
    precision_recall_figure,
    roc_figure,
)


def write(run_dir: Path, pictures: dict[str, bytes]) -> list[Path]:
    """Write the PNGs into `run_dir`/plots and delete other PNGs there.

    Raises OSError if that fails.
    """
    folder = Path(run_dir) / "plots"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}.png" for name in pictures]
    for path, png in zip(paths, pictures.values(), strict=True):
        files.replace(path, png)
    # Delete plots that an earlier call wrote and this one did not.
    for stale in set(folder.glob("*.png")) - set(paths):
        stale.unlink()
    return paths


def draw(run: Run, theme: Theme) -> dict[str, bytes]:
    """{name: PNG} of one run's figures."""
    own = {file_name(group[0]): functools.partial(metric_figure, group) for group in groups(run)}
    # The loss comes first: a key keeps its first place when FIGURES names it again.
    return render({"loss": loss_figure} | own | FIGURES, run, theme)


HIDDEN = (GIVEN, watch_plots.PREFIX)  # prefixes of keys that have figures of their own
# Keys that every step records.
STEP_NAMES = {
    *("loss", "learning_rate", "grad_norm", "skipped_steps", "tokens_per_second", "mfu", "step_seconds"),
    *("data_wait_seconds", "spikes", "recompilations"),
}


def measured(run: Run) -> list[str]:
    """Names of the metrics that evaluations and objectives record, without "eval/".

    Levels (values that simple methods reach) and the keys in `STEP_NAMES` are left out.
    """
    own = (name for name in run.names() if name not in STEP_NAMES and not name.startswith(HIDDEN))
    names = dict.fromkeys(name.removeprefix("eval/") for name in own)
    return [name for name in names if not run.metric(f"eval/{name}").level]


def groups(run: Run) -> list[tuple[str, ...]]:
    """The metrics to draw. Metrics that share a plot are in one tuple.

    The loss is not among them, since it has its own figure in `FIGURES`.
    """
    names = measured(run)
    beside = {name: run.metric(f"eval/{name}").beside for name in names}
    alone = [name for name in names if beside[name] not in (*names, "loss") and name != "loss"]
    return [(name, *(other for other in names if beside[other] == name)) for name in alone]


def file_name(name: str) -> str:
    """A metric's name with characters that suit a file name."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


# ---- one run ----


def loss_figure(run: Run, theme: Theme):
    """Training and held-out loss by step."""
    (steps, train), (eval_steps, held_out) = run.series("loss"), run.series("eval/loss")
    if not is_curve(steps, eval_steps):
        return None
    figure, axes = new_axes(theme, f"Loss, {loss_unit(run)}")
    labels = _train_and_eval(run, theme, axes, "loss")
    spike_marks.mark(axes, theme, run.spikes)
    cut_start(axes, [(train, held_out)])
    return label_ends(figure, axes, labels)


def is_curve(*steps: np.ndarray) -> bool:
    """Whether any series has more than one point.

    A single value is shown in the cards, not in a plot.
    """
    return max(map(len, steps)) > 1


def _train_and_eval(run: Run, theme: Theme, axes, name: str) -> list[tuple[float, str, str]]:
    (steps, train), (eval_steps, held_out) = run.series(name), run.series(f"eval/{name}")
    labels = []
    if len(steps):
        axes.plot(steps, train, color=theme.series[0], linewidth=0.8, alpha=0.35)
        labels.append(curve(axes, steps, smooth(train), theme.series[0], "train"))
    if len(eval_steps):
        labels.append(curve(axes, eval_steps, held_out, theme.series[1], "eval", marker="o"))
    return labels


def metric_figure(names: tuple[str, ...], run: Run, theme: Theme):
    """One or several metrics on training and held-out data, above the levels to beat."""
    if not is_curve(*(run.series(key)[0] for name in names for key in (name, f"eval/{name}"))):
        return None
    metrics = [run.metric(f"eval/{name}") for name in names]
    figure, axes = new_axes(theme, _titles(metrics))
    if is_share(metrics[0]):
        percent_ticks(axes.yaxis)
    labels = _several(run, theme, axes, metrics) if len(metrics) > 1 else _train_and_eval(run, theme, axes, names[0])
    return label_ends(figure, axes, labels + _levels(run, theme, axes, names[0]))


def _titles(metrics: list[Metric]) -> str:
    first, *others = (m.title for m in metrics if m.title)
    return " and ".join((first, *(t if t[1:2].isupper() else t[:1].lower() + t[1:] for t in others)))


def _several(run: Run, theme: Theme, axes, metrics: list[Metric]) -> list[tuple[float, str, str]]:
    """Held-out curves with points, training curves thin and smoothed; each named at its end."""
    labels = []
    for metric, color in zip(metrics, itertools.cycle(theme.series)):
        name = metric.label or metric.title
        (steps, train), (eval_steps, held_out) = run.series(metric.name), run.series(f"eval/{metric.name}")
        if len(steps):
            axes.plot(steps, smooth(train), color=color, linewidth=0.8, alpha=0.6)
        if len(eval_steps):
            labels.append(curve(axes, eval_steps, held_out, color, name, marker="o"))
        elif len(steps):
            labels.append((float(smooth(train)[-1]), name, color))
    return labels


def _levels(run: Run, theme: Theme, axes, name: str) -> list[tuple[float, str, str]]:
    labels = []
    for key, level in levels(run, name).items():
        axes.axhline(value := run.last(key), color=theme.muted, linewidth=1.2, linestyle=(0, (5, 3)))
        labels.append((value, level.label.replace(" primed", "\nprimed") or level.title, theme.muted))
    return labels


def learning_rate_figure(run: Run, theme: Theme):
    """The learning rate by step."""
    steps, rate = run.series("learning_rate")
    if not is_curve(steps):
        return None
    figure, axes = new_axes(theme, "Learning rate")
    axes.fill_between(steps, rate, color=theme.series[0], alpha=0.12, linewidth=0)
    curve(axes, steps, rate, theme.series[0], "")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    return figure


def grad_norm_figure(run: Run, theme: Theme):
    """The gradient norm by step, on a log scale if it spans a wide range."""
    steps, norm = run.series("grad_norm")
    if not is_curve(steps) or not (norm > 0).any():
        return None
    figure, axes = new_axes(theme, "Gradient norm")
    axes.plot(steps, norm, color=theme.series[0], linewidth=0.8, alpha=0.35)
    curve(axes, steps, smooth(norm), theme.series[0], "")
    # A log scale suits norms that span more than a factor of eight.
    if norm.max() > 8 * norm[norm > 0].min():
        axes.set_yscale("log")
    spike_marks.mark(axes, theme, run.spikes)
    return figure


def throughput_figure(run: Run, theme: Theme):
    """Throughput by step. The right axis shows MFU."""
    steps, rate = run.series("tokens_per_second")
    if not is_curve(steps):
        return None
    figure, axes = new_axes(theme, f"Throughput, {unit(run)}s per second")
    curve(axes, steps, rate, theme.series[0], "")
    axes.set_ylim(0, 1.15 * rate.max())
    axes.yaxis.set_major_formatter(short_tick)
    mfu = run.series("mfu")[1]
    # An unknown peak is recorded as an MFU of 0.
    if len(mfu) and mfu[-1] > 0 and rate[-1] > 0:
        # One curve with two scales, since MFU is throughput times a constant.
        ratio = 100 * mfu[-1] / rate[-1]
        right = axes.secondary_yaxis("right", functions=(lambda y: y * ratio, lambda y: y / ratio))
        right.tick_params(length=0, colors=theme.muted, pad=8)
        right.spines["right"].set_visible(False)
        right.set_ylabel("MFU, %", color=theme.muted)
    return figure


def step_time_figure(run: Run, theme: Theme):
    """A histogram of step times with median and 95th percentile."""
    times, name = run.series("step_seconds")[1], "s"
    if len(times) < 2:
        return None
    if np.median(times) < 1:
        times, name = 1000 * times, "ms"
    median, p95 = np.percentile(times, (50, 95))
    # The first step includes compilation. If it were shown, all other steps would fall into one
    # bar. The larger of the two bounds keeps at least 95 % of the steps in the figure.
    shown = times[times <= max(1.5 * p95, 2 * median)]
    beyond = len(times) - len(shown)
    title = f"Step time, {name}" + (f"   ({beyond} slower not shown)" if beyond else "")
    figure, axes = new_axes(theme, title, xlabel=name)
    axes.hist(shown, bins=min(40, max(5, len(shown) // 4)), color=theme.series[0], alpha=0.55, linewidth=0)
    # The room above the bars holds the two texts.
    top = axes.get_ylim()[1] * 1.3
    axes.set_ylim(0, top)
    for value, text, height in ((median, "median", 0.97), (p95, "p95", 0.86)):
        axes.axvline(value, color=theme.ink, linewidth=1.2, linestyle="-" if text == "median" else (0, (4, 3)))
        # The text stands on the side that has more room.
        right = value > np.mean(axes.get_xlim())
        axes.annotate(
            f"{text} {value:.3g}",
            (value, top * height),
            xytext=(-5 if right else 5, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            va="top",
            color=theme.ink,
        )
    axes.grid(axis="x", visible=False)
    return figure


FIGURES: dict[str, Callable] = {
    "loss": loss_figure,
    "loss_by_part": loss_by_part_figure,
    "epochs_by_part": epochs_by_part_figure,
    "share_by_part": share_by_part_figure,
    "confusion": confusion_figure,
    "per_class": per_class_figure,
    "roc": roc_figure,
    "precision_recall": precision_recall_figure,
    "calibration": calibration_figure,
    "by_group": groups_figure,
    "learning_rate": learning_rate_figure,
    "grad_norm": grad_norm_figure,
    "throughput": throughput_figure,
    "step_time": step_time_figure,
}
