"""Ctrl-C and SIGTERM from the first line of a command to its last: one line, and the end within seconds.

The loop of steps obeys signals itself (training/signals.py), since it saves first. Everywhere else an `Interrupt`
unwinds the main thread. That can fail: the main thread may be inside XLA's compiler, where no Python runs, or inside a
callback that swallows exceptions. So a thread hears of each signal as well, and ends the process where it goes on.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator

GRACE_SECONDS = 4.0  # from the signal to the end, where nothing is being saved
CODES = {signal.SIGINT: 130, signal.SIGTERM: 0}  # Ctrl-C is the user's own; SIGTERM is how clusters ask for a clean end

_one_end = threading.Lock()
_saving = 0  # blocks of `patient` that the process is in
_heard: int | None = None  # a signal that nobody has obeyed yet


class Interrupt(KeyboardInterrupt):
    """The command was told to end outside the loop of steps. A library that handles Ctrl-C handles it."""

    def __init__(self, number: int):
        super().__init__(f"interrupted by {signal.Signals(number).name}; the same command starts or resumes it")
        self.code = CODES[number]


def install() -> None:
    """Handles both signals from here on, before the imports that take seconds. One that comes meanwhile waits."""
    signal.pthread_sigmask(signal.SIG_BLOCK, CODES)  # until the hooks below know what an Interrupt is
    for number in CODES:
        signal.signal(number, _raise)
    pipe, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(pipe,), name="interrupts", daemon=True).start()
    uncaught, unraisable = sys.excepthook, sys.unraisablehook
    sys.excepthook = lambda kind, error, tb: end(error) if kind is Interrupt else uncaught(kind, error, tb)
    # A finaliser or a callback of the garbage collector swallows the exception; its traceback says nothing to a user.
    sys.unraisablehook = lambda u: None if u.exc_type is Interrupt else unraisable(u)
    atexit.register(_ignore)  # the first that is registered is the last that runs
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CODES)  # a signal that has waited, in `held` too, comes here


def _ignore() -> None:
    """Ignores what comes while the interpreter ends: it would take our handlers away first, and a signal would kill a
    process whose work is done, in the place of its exit code."""
    for number in CODES:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A block in which signals wait: for its end, or for `install` in a program that takes this one's place."""
    signal.pthread_sigmask(signal.SIG_BLOCK, CODES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, CODES)


def end(stop: Interrupt) -> None:
    """Ends the process with one line, once, in whatever thread: what else runs is not waited for."""
    if _one_end.acquire(blocking=False):
        tell(str(stop), stop.code)
        print(stop, file=sys.__stderr__)
        with contextlib.suppress(OSError, RuntimeError):  # a pipe that nobody reads any more, a signal within a write
            sys.stdout.flush()
        os._exit(stop.code)


def tell(text: str, code: int) -> None:
    """What else must know before the process ends: replaced where it is one of several (cluster/peers.py)."""


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """A block that obeys signals by itself, or ends soon and must not be cut, such as a save."""
    global _saving
    _saving += 1
    try:
        yield
    finally:
        _saving -= 1


def take() -> int | None:
    """The signal that was heard and has ended nothing yet, which the caller now obeys; None where there is none.

    A callback that swallows exceptions may have swallowed it.
    """
    global _heard
    number, _heard = _heard, None
    return number


def obey() -> None:
    """Raises the Interrupt of a signal that was heard, where a library has made an error of its own of the first one."""
    number = take()
    if number is not None:
        raise Interrupt(number)


def _raise(number: int, frame: types.FrameType | None) -> None:
    global _heard
    _heard = number
    if not _imports(frame):
        raise Interrupt(number)
    if not _saving:  # else the thread ends the process once it has saved
        end(Interrupt(number))


def _imports(frame: types.FrameType | None) -> bool:
    """Whether a module is being imported. jaxlib aborts the process where an exception unwinds the import of its C++."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _watch(pipe: int) -> None:
    """Hears of signals that no Python code has handled yet, too."""
    global _heard
    count = 0
    while True:
        number, count = os.read(pipe, 1)[0], count + 1
        if number in CODES and (not _saving or count > 1):
            _heard = number
            threading.Thread(target=_end_soon, args=(number, count), daemon=True).start()


def _end_soon(number: int, count: int) -> None:
    """Ends the process after GRACE_SECONDS and whatever is being saved; the third signal waits for no save."""
    time.sleep(GRACE_SECONDS)
    while _saving and count < 3:
        time.sleep(0.05)
    if _heard is not None:
        end(Interrupt(number))
