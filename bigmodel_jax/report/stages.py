"""Show what is being done before training: importing, preparing data, building, compiling."""

from rich.console import Console


class Stages:
    """The stage in progress, as a context manager.

    This module does not import JAX, so it can report while JAX is imported. On a terminal it shows
    one line, which the next stage replaces and `end` removes. Elsewhere (a log file, CI) it prints
    one plain line per stage. A quiet console prints nothing.
    """

    def __init__(self, console: Console):
        self.console = console
        self._status = console.status("") if console.is_terminal and not console.quiet else None

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *exception) -> None:
        self.end()

    def begin(self, text: str) -> None:
        """Show a stage."""
        if self._status is None:
            self.console.print(f"{text} ...", markup=False, highlight=False)
            return
        self._status.update(f"{text} ...")
        # `say` and `end` stop the line, so every stage starts it again.
        self._status.start()

    def end(self) -> None:
        """Remove the line of the current stage."""
        if self._status is not None:
            self._status.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.end()
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
