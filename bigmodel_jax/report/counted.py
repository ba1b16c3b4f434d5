"""A progress bar for work of known length, on stderr: items done, rate, time left."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn

from bigmodel_jax.core.terminal import make_console


class Rate(TextColumn):
    """Items per second. The text is empty until there are two items."""

    def render(self, task: Task):
        return super().render(task) if task.speed else ""


@contextlib.contextmanager
def counting(total: int, text: str, console: Console | None = None) -> Iterator[Callable[[], None]]:
    """Show a progress bar labelled `text`, and yield a function that advances it by one.

    Nothing is shown if stderr is not a terminal.
    """
    columns = (
        # Rich would otherwise read a name with brackets as a style.
        TextColumn("{task.description}", markup=False),
        BarColumn(complete_style="blue", finished_style="blue"),
        MofNCompleteColumn(),
        Rate("{task.speed:.1f}/s", markup=False),
        TimeRemainingColumn(),
    )
    console = console or make_console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        yield lambda: bar.advance(task)
