"""A bar over work of a known length, on stderr: how much is done, how fast, and what is left."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn


class Rate(TextColumn):
    """Items a second, once there are two."""

    def render(self, task: Task):
        return super().render(task) if task.speed else ""


@contextlib.contextmanager
def counting(total: int, text: str, console: Console | None = None) -> Iterator[Callable[[], None]]:
    """Shows a bar that says `text`, and yields what moves it by one; where stderr is no terminal, nothing is shown."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(complete_style="blue", finished_style="blue"),
        MofNCompleteColumn(),
        Rate("{task.speed:.1f}/s", markup=False),
        TimeRemainingColumn(),
    )
    console = console or Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        yield lambda: bar.advance(task)
