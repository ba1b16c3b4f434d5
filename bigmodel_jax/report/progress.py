"""Show a run's progress: a table of what will run, then a bar, or plain lines without a
terminal.
"""

import collections
import math
import time
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column, Table

from bigmodel_jax.core import params
from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.optim import groups

BAR_SECONDS = 0.5  # seconds between two redraws
LINE_SECONDS = 10.0  # seconds between two plain lines
BAR_PARTS = 4  # most parts of a mixture whose epochs the bar shows
WINDOW_SECONDS = 60.0  # history from which the time left is estimated; short, so that compilation soon drops out


def start_rows(config, mesh, steps: int, tokens_per_step: int, unit: str, memory: int | None) -> list[tuple[str, str]]:
    """(name, text) rows on what will run.

    steps: steps still to do. unit: what tokens_per_step counts, "tokens" or "examples". memory:
    bytes needed on one device, if known.
    """
    spec, train = config.make_model().spec, config.train
    fixed = params.count(params.of_kind(spec, spec, "constant"))
    axes = " x ".join(f"{a}={n}" for a, n in mesh.shape.items() if n > 1) or "one device"
    micro = f", in {train.microbatches} microbatches" if train.microbatches > 1 else ""
    rows = [
        ("model", type(config.model).__name__.removesuffix("Config")),
        ("parameters", f"{params.count(spec, trainable=True):,}"),
        *([("constants", f"{fixed:,} parameters")] if fixed else []),
        (unit, f"{tokens_per_step * steps:,} in {steps:,} steps"),
        ("batch", f"{train.batch_size:,} rows, {tokens_per_step:,} {unit} a step{micro}"),
        ("mesh", f"{axes} ({mesh.devices.flat[0].device_kind}), {config.parallel.strategy}"),
        ("precision", f"{config.precision.compute} compute, {config.precision.param} weights"),
    ]
    return rows if memory is None else [*rows, ("memory", f"{memory / 2**20:,.0f} MiB a device")]


def start_table(rows: list[tuple[str, str]], title: str) -> Table:
    """A table of (name, value) rows under the run's name."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def group_table(config) -> Table:
    """A table of parameter groups and of what is done to each, if the config has groups."""
    title = "parameters by path; the first pattern that matches counts"
    table = Table(title=title, title_justify="left", title_style="dim", box=box.SIMPLE_HEAD)
    for name in ("pattern", "leaves", "parameters", "share", "what is done"):
        table.add_column(name, justify="left" if name in ("pattern", "what is done") else "right", overflow="fold")
    for row in groups.rows(config.optim.groups, config.make_model().spec):
        table.add_row(*map(escape, row))
    return table


class Progress:
    """The progress display of a run, as a context manager.

    On a terminal it is a bar, redrawn twice a second. Other calls of `update` take a few
    microseconds. Elsewhere (a log file, CI) it prints one plain line every 10 seconds, and one at
    the end. enabled: False (on every process but the first) prints nothing. unit: what throughput
    counts.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        console: Console | None = None,
        enabled: bool = True,
        unit: str = "tokens",
    ):
        self._console = console or make_console()
        self._total, self._step, self._unit, self._enabled = total_steps, start_step, unit, enabled
        self._values: dict[str, Any] = {}
        self._bar = self._make_bar() if enabled and self._console.is_terminal else None
        self._period = BAR_SECONDS if self._bar else LINE_SECONDS

    def __enter__(self) -> "Progress":
        self._start = self._last = time.perf_counter()
        self._history = collections.deque([(self._start, self._step)])
        self._printed_step = self._step
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, completed=self._step, line=self.line())
        return self

    def __exit__(self, *exception) -> None:
        # A step that was shown already is not printed twice.
        if self._enabled and self._step != self._printed_step:
            self._show(time.perf_counter())
        if self._bar:
            self._bar.stop()

    def update(
        self,
        step: int,
        loss: float | None = None,
        tokens_per_second: float | None = None,
        mfu: float | None = None,
        **more: float,
    ) -> None:
        """Report that `step` steps are done.

        Values that are not given stay as they were. Each value in `more` is shown under its name.
        """
        self._step = step
        given = {"loss": loss, "rate": tokens_per_second, "mfu": mfu} | more
        self._values |= {k: v for k, v in given.items() if v is not None}
        now = time.perf_counter()
        if self._enabled and now - self._last >= self._period:
            self._show(now)

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        if self._enabled:
            # A path may hold brackets, which rich would read as markup.
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def line(self) -> str:
        """The current figures in one line, without the bar."""
        now, values = time.perf_counter(), dict(self._values)
        parts = [f"step {self._step:,}/{self._total:,}"]
        if "loss" in values:
            parts.append(f"loss {values.pop('loss'):.4g}")
        if "rate" in values:
            parts.append(f"{short(values.pop('rate'))} {self._unit}/s")
        if "mfu" in values:
            parts.append(f"MFU {100 * values.pop('mfu'):.1f}%")
        parts += [f"{name} {value:.4g}" for name, value in values.items()]
        parts.append(clock(now - self._start))
        left = self._seconds_left(now) if self._step < self._total else None
        return "  ".join(parts if left is None else [*parts, f"left {clock(left)}"])

    def _show(self, now: float) -> None:
        self._last, self._printed_step = now, self._step
        self._history.append((now, self._step))
        # Keep at least two entries: in a slow run they may be further apart than the window.
        while len(self._history) > 2 and now - self._history[0][0] > WINDOW_SECONDS:
            self._history.popleft()
        if self._bar:
            self._bar.update(self._task, completed=self._step, line=self.line(), refresh=True)
        else:
            self._console.print(self.line(), markup=False, highlight=False, soft_wrap=True)

    def _seconds_left(self, now: float) -> float | None:
        (then, step) = self._history[0]
        done = self._step - step
        return (self._total - self._step) * (now - then) / done if done > 0 else None

    def _make_bar(self) -> RichProgress:
        # The bar has no refresh thread, because that thread would hold Python's lock while a step
        # is dispatched.
        bar = BarColumn(bar_width=None, complete_style="blue", finished_style="blue")
        figures = TextColumn("{task.fields[line]}", markup=False, table_column=Column(no_wrap=True))
        return RichProgress(bar, figures, console=self._console, auto_refresh=False, expand=True)


def part_epochs(sums: dict) -> dict[str, float]:
    """The epochs done of each part of a mixture, as the bar shows them: {"epochs web": 0.3}.

    Empty if there are more parts than the bar has room for.
    """
    ends = {name: name.split("/")[1] for name in sums if name.startswith("mixture/") and name.endswith("/epochs")}
    if len(ends) > BAR_PARTS:
        return {}
    return {f"epochs {part}": float(sums[name].compute()) for name, part in ends.items()}


def short(value: float) -> str:
    """A number in three digits with a suffix: 123, 12.3k, 4.57M."""
    if not math.isfinite(value):
        return str(value)
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def clock(seconds: float) -> str:
    """A time as h:mm:ss or m:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def duration(seconds: float) -> str:
    """A time in three digits and a readable unit: 3.2 days, 1.5 minutes, 0.41 ms."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{1e6 * seconds:.3g} µs"
