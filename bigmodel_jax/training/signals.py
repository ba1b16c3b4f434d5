"""Signals that end a run: noted when they come, obeyed between steps."""

import signal


class Stop:
    """Turns SIGTERM and Ctrl-C into a flag that the loop reads between steps, so that it saves and ends cleanly."""

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self) -> "Stop":
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, _frame) -> None:
        self.signal = number
        # A second Ctrl-C ends at once.
        signal.signal(number, self._before[number])

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Interrupted(Exception):
    """The run was told to stop; it is saved at `step`."""

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"interrupted by {signal.Signals(signal_number).name}; saved at step {step}")
        self.signal_number, self.step = signal_number, step
