"""Ctrl-C and SIGTERM at any point of a command print one line and end the process within seconds.

The training loop handles signals itself (training/signals.py), because it saves first. Everywhere
else an `Interrupt` unwinds the main thread. That can fail: the main thread may be inside XLA's
compiler, where no Python runs, or inside a callback that swallows exceptions. So a thread also
receives each signal, and ends the process if the main thread keeps running.
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

GRACE_SECONDS = 4.0  # from the signal to the end of the process, if nothing is being saved
# Ctrl-C exits as shells expect (128 + 2). SIGTERM exits with 0, because clusters use it to ask for
# a clean end.
CODES = {signal.SIGINT: 130, signal.SIGTERM: 0}

_one_end = threading.Lock()
_saving = 0  # number of `patient` blocks that the process is in
_heard: int | None = None  # a signal that was received and not yet acted on


class Interrupt(KeyboardInterrupt):
    """Raised when a signal ends the command outside the training loop.

    It is a KeyboardInterrupt, so libraries that handle Ctrl-C handle it, too.
    """

    def __init__(self, number: int):
        super().__init__(f"interrupted by {signal.Signals(number).name}; the same command starts or resumes it")
        self.code = CODES[number]


def install() -> None:
    """Installs handlers for both signals; called before the imports, which take seconds.

    A signal that arrives during the installation is delivered at its end.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, CODES)  # until the hooks below can handle an Interrupt
    for number in CODES:
        signal.signal(number, _raise)
    pipe, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(pipe,), name="interrupts", daemon=True).start()
    uncaught, unraisable = sys.excepthook, sys.unraisablehook
    sys.excepthook = lambda kind, error, tb: end(error) if kind is Interrupt else uncaught(kind, error, tb)
    # Python swallows an exception in a finaliser or a garbage-collection callback. Its traceback
    # would tell a user nothing, so it is not printed.
    sys.unraisablehook = lambda u: None if u.exc_type is Interrupt else unraisable(u)
    atexit.register(_ignore)  # atexit runs in reverse order, so this runs last
    # a signal that arrived meanwhile, or in `held`, is delivered now
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CODES)


def _ignore() -> None:
    """Ignores both signals while the interpreter shuts down.

    The interpreter removes Python's handlers first. A signal after that would kill a process whose
    work is done, and replace its exit code.
    """
    for number in CODES:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A block in which signals are deferred to its end, or to `install` if another program is
    started."""
    signal.pthread_sigmask(signal.SIG_BLOCK, CODES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, CODES)


def end(stop: Interrupt) -> None:
    """Prints one line and ends the process at once, from any thread. Only the first call acts."""
    if _one_end.acquire(blocking=False):
        tell(str(stop), stop.code)
        print(stop, file=sys.__stderr__)
        with contextlib.suppress(OSError, RuntimeError):  # a closed pipe, or a signal during a write
            sys.stdout.flush()
        os._exit(stop.code)


def tell(text: str, code: int) -> None:
    """A hook called before the process ends; cluster/peers.py replaces it in jobs of several
    processes."""


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """A block that handles signals itself, or that must not be cut short, such as a save."""
    global _saving
    _saving += 1
    try:
        yield
    finally:
        _saving -= 1


def take() -> int | None:
    """Returns the signal that has been received and not acted on, and clears it; None if there is
    none.

    The caller acts on it. This is needed where a callback may have swallowed the Interrupt.
    """
    global _heard
    number, _heard = _heard, None
    return number


def obey() -> None:
    """Raises the Interrupt of a received signal that a library has turned into an error of its
    own."""
    number = take()
    if number is not None:
        raise Interrupt(number)


def _raise(number: int, frame: types.FrameType | None) -> None:
    global _heard
    _heard = number
    if not _imports(frame):
        raise Interrupt(number)
    if not _saving:  # during a save, the thread ends the process when the save is done
        end(Interrupt(number))


def _imports(frame: types.FrameType | None) -> bool:
    """Whether a module is being imported: jaxlib aborts if an exception unwinds its C++ import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _watch(pipe: int) -> None:
    """Reads signals from the wake-up pipe.

    This also works while no Python code runs in the main thread.
    """
    global _heard
    count = 0
    while True:
        number, count = os.read(pipe, 1)[0], count + 1
        if number in CODES and (not _saving or count > 1):
            _heard = number
            threading.Thread(target=_end_soon, args=(number, count), daemon=True).start()


def _end_soon(number: int, count: int) -> None:
    """Ends the process after GRACE_SECONDS and any save.

    A third signal does not wait for the save.
    """
    time.sleep(GRACE_SECONDS)
    while _saving and count < 3:
        time.sleep(0.05)
    if _heard is not None:
        end(Interrupt(number))
