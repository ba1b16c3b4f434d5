"""What is being done while there is nothing else to show: importing, preparing data, building, compiling."""

from rich.console import Console


class Stages:
    """The stage in progress, as a context manager. It imports nothing of JAX, so that it can speak while JAX is imported.

    On a terminal one line that the next stage replaces and `end` removes; elsewhere (a log file, CI) one plain line a
    stage. A quiet console says nothing at all.
    """

    def __init__(self, console: Console):
        self.console = console
        self._status = console.status("") if console.is_terminal and not console.quiet else None

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *exception) -> None:
        self.end()

    def begin(self, text: str) -> None:
        if self._status is None:
            self.console.print(f"{text} ...", markup=False, highlight=False)
            return
        self._status.update(f"{text} ...")
        self._status.start()

    def end(self) -> None:
        if self._status is not None:
            self._status.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.end()
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
