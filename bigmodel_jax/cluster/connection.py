"""One end of a connection between two processes of a job. Messages are lines of JSON."""

import json
import socket
import threading
import time
from typing import Any

# A host that does not answer counts as gone after ten seconds.
KEEPALIVE = (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 10_000))


class Peer:
    """The process at the other end of a connection, and the latest state that it has reported."""

    def __init__(self, connection: socket.socket, name: str = ""):
        self.connection, self.name = connection, name
        self.process_id, self.host, self.facts, self.left = -1, "", None, False
        self.beat, self.heard, self.stacks = (
            None,
            time.monotonic(),
            None,
        )  # beat: its latest state; heard: when it last reported
        self._buffer, self._sending = b"", threading.Lock()  # two threads must not mix their lines
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    @property
    def closed(self) -> bool:
        return self.connection.fileno() < 0

    def send(self, **message: Any) -> None:
        """Sends one message. A broken connection is ignored, since `receive` reports it."""
        try:
            with self._sending:
                self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return  # the reading side notices that the peer is gone

    def receive(self) -> list[dict] | None:
        """The messages that have arrived; None at the end of the connection."""
        try:
            data = self.connection.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            return None
        # The last part is an incomplete line, or empty.
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            return None  # the sender is not a process of this job

    def __str__(self) -> str:
        return self.name
