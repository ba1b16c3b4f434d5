"""Signals that end a run after the current step, the same step in all processes."""

import os
import signal

import jax
from jax.experimental import multihost_utils

from bigmodel_jax.core import interrupts


class Stop:
    """Turns SIGTERM and Ctrl-C into a flag that the loop reads between steps, to save and end.

    In a run of several processes JAX's preemption service handles SIGTERM: if one process gets it,
    the service chooses the step after which all processes stop. Ctrl-C becomes SIGTERM there.
    """

    def __init__(self):
        self.signal: int | None = None
        self._job = jax.process_count() > 1

    def __enter__(self) -> "Stop":
        numbers = (signal.SIGINT,) if self._job else (signal.SIGTERM, signal.SIGINT)
        self._before = {s: signal.signal(s, self._note) for s in numbers}
        self._patient = interrupts.patient()
        self._patient.__enter__()
        self.signal = None if self._job else interrupts.take()
        return self

    def _note(self, number: int, _frame) -> None:
        if self._job:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.signal = number
        # A second Ctrl-C ends the process at once. A second SIGTERM does not: a scheduler and its
        # job script often both send one.
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])

    def after(self, step: int) -> bool:
        """Whether the run stops after this step; must be asked once a step, and agrees in all
        processes.
        """
        if self._job and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def __exit__(self, *_) -> None:
        self._patient.__exit__(None, None, None)
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Interrupted(Exception):
    """A signal stopped the run, which is saved at `step`."""

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"interrupted by {signal.Signals(signal_number).name}; saved at step {step}")
        self.signal_number, self.step = signal_number, step
