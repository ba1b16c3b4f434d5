"""Calls the user's reward functions in separate processes. A crash there does not end the run."""

import atexit
import functools
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from bigmodel_jax.core import user_code

OPTION = "objective.reward"
WORKERS = 4  # the largest number of processes
START_SECONDS = 60.0  # time for a process to import the functions
GRACE_SECONDS = 2.0  # a process counts as hung this long after a function's time limit


class Sample(NamedTuple):
    """The arguments of a reward function: the record's prompt, the response's text, the whole
    record.
    """

    prompt: Any
    response: str
    record: dict[str, Any]

    def described(self) -> str:
        return f"prompt {_short(self.prompt, 100)}, response {_short(self.response, 200)}"


def _short(value: Any, most: int) -> str:
    text = repr(value).replace("\n", " ")  # an array's text has several lines
    return text if len(text) <= most else f"{text[:most]}..."


class Judges:
    """Calls the functions `names` on samples. Ends calls that take longer than `seconds`."""

    def __init__(self, names: tuple[str, ...], seconds: float):
        self.names, self.seconds = names, seconds
        self._pool = None
        self._num = max(1, min(WORKERS, os.cpu_count() or 1))

    def submit(self, sample: Sample) -> Callable[[], list[float | str]]:
        """Starts the calls, and returns a function that waits for the results.

        A result is a finite number, or a text that says why there is none.
        """
        if self._pool is None:
            # The processes are spawned instead of forked: a fork would copy the locks of JAX's
            # threads without the threads.
            self._pool = multiprocessing.get_context("spawn").Pool(self._num, _begin)
            self._started = False
        self._seen = time.monotonic()
        result = self._pool.apply_async(_score, (self.names, self.seconds, sample))
        return functools.partial(self._wait, self._pool, result)

    def _wait(self, pool, result) -> list[float | str]:
        """Waits for one call's results, at most until its time limit.

        Calls start and are awaited in order. So this call started at the latest when the previous
        call ended.
        """
        # The limit counts from the previous result. The first call also waits for the imports.
        limit = self.seconds * len(self.names) + GRACE_SECONDS + (0.0 if self._started else START_SECONDS)
        if pool is self._pool:
            result.wait(max(self._seen + limit - time.monotonic(), 0.0))
        if result.ready():
            self._started, self._seen = True, time.monotonic()
            return result.get()
        if pool is self._pool:
            self.close()
        return [f"did not return within {self.seconds:g} s, and its process was ended"] * len(self.names)

    def close(self) -> None:
        """Ends the processes. The next call starts new processes."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None


@functools.cache
def judges(names: tuple[str, ...], seconds: float) -> Judges:
    """This process's `Judges`, which training and evaluation share."""
    found = Judges(names, seconds)
    atexit.register(found.close)
    return found


# ---------------------------------------------------------------- in the other processes


def _begin() -> None:
    """Ignores Ctrl-C, which the parent process handles, and keeps JAX off the accelerator."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["JAX_PLATFORMS"] = "cpu"


def _score(names: tuple[str, ...], seconds: float, sample: Sample) -> list[float | str]:
    return [_call(name, seconds, sample) for name in names]


def _call(name: str, seconds: float, sample: Sample) -> float | str:
    def stop(*_):
        raise TimeoutError(f"took longer than {seconds:g} s")

    try:
        function = user_code.find(OPTION, name)
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            value = function(*sample)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        return f"raised {user_code.described(error)}"
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except Exception:  # OverflowError for 10**400, RuntimeError for a tensor of torch
        number = math.nan
    return number if math.isfinite(number) else f"returned {_short(value, 40)}, which is no finite number"


def failure(names: tuple[str, ...], given: list[float | str], sample: Sample) -> str:
    """One line about the first function that returned no number; "" if all returned numbers."""
    for name, value in zip(names, given, strict=True):
        if isinstance(value, str):
            return f"{OPTION}: {name} {value}; {sample.described()}"
    return ""
