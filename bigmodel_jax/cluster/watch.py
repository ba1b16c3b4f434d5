"""The part of the watch that all processes share: a thread that reads messages. See peers.py."""

import os
import selectors
import socket
import threading
import time
import traceback
from collections.abc import Callable

from bigmodel_jax.cluster.connection import Peer
from bigmodel_jax.core import pulse

LOST = pulse.LOST
RESUMES = "the same command resumes the run"


class Watch:
    """A thread that reads the connections of one process."""

    def __init__(self):
        self.selector = selectors.DefaultSelector()
        self.changed = threading.Condition()
        self.deadline: tuple[float, str, int] | None = None  # an error that is printed unless a better reason arrives
        self.ticks, self.next_look = pulse.Ticks(), 0.0

    def start(self) -> None:
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def read(self, source: socket.socket, handle: Callable[[], None]) -> None:
        """Calls `handle` whenever `source` has data."""
        self.selector.register(source, selectors.EVENT_READ, handle)

    def forget(self, peer: Peer) -> None:
        """Closes a connection and stops reading it."""
        self.selector.unregister(peer.connection)
        peer.connection.close()

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Waits until `condition` holds, and returns whether it did within `seconds`."""
        with self.changed:
            return self.changed.wait_for(condition, seconds)

    def _watch(self) -> None:
        try:
            self._run()
        except Exception:  # an unwatched process would hang when another one dies
            end_here(traceback.format_exc(), 1)

    def _run(self) -> None:
        while True:
            # The timeout keeps the checks below running when no message arrives.
            for key, _ in self.selector.select(1.0):
                key.data()
                with self.changed:
                    self.changed.notify_all()
            if gap := self.ticks.gap():
                self.forgive(gap)
            elif time.monotonic() >= self.next_look:
                self.look()
            if self.deadline is not None and time.monotonic() >= self.deadline[0]:
                self.end(*self.deadline[1:])

    def look(self) -> None:
        """Checks from time to time whether another process hangs, and sets `next_look`."""
        raise NotImplementedError

    def forgive(self, seconds: float) -> None:
        """Called after this process itself was suspended, so that no other process is blamed for
        silence.
        """
        pulse.forgive(seconds)

    def end(self, text: str, code: int) -> None:
        """Ends the job with this message and exit code."""
        raise NotImplementedError


def end_here(text: str, code: int) -> None:
    """Ends only this process, at once.

    A process that hangs in a collective cannot end in another way.
    """
    pulse.say(text)
    os._exit(code)


def given_up(name: str) -> str:
    """The message of a process that wakes after the others have ended."""
    return f"error: {name} did not answer, and the others have ended without it; {RESUMES}"
