"""One end of a connection between two processes of a job. Messages are lines of JSON."""

import json
import socket
from typing import Any

# Ten seconds until a host that does not answer counts as gone.
KEEPALIVE = (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 10_000))


class Peer:
    """The other end of a connection."""

    def __init__(self, connection: socket.socket, name: str = ""):
        self.connection, self.name = connection, name
        self.process_id, self.host, self.facts, self.left = -1, "", None, False
        self._buffer = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def send(self, **message: Any) -> None:
        try:
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return  # it is gone, which its end of the connection says by itself

    def receive(self) -> list[dict] | None:
        """What has arrived; None at the end of the connection."""
        try:
            data = self.connection.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            return None  # no process of ours speaks like that

    def __str__(self) -> str:
        return self.name
