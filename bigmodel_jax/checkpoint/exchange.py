"""Sends pieces of local saves between the processes of a job over TCP, with one request per
connection.

Collectives would not work. Pieces travel while the next steps run, and a collective of one thread
could be matched with a collective of the other. A request is a line with the job's token, a line of
JSON, and as many bytes as the JSON says. The answer is a line of JSON, and then as many bytes as
that JSON says. Process 0 makes the token, and the coordination service spreads it. A request
without the token gets no answer.
"""

import hmac
import json
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator

from bigmodel_jax.core import processes

SECONDS = 60.0  # timeout of one read or write
CHUNK = 4 << 20  # bytes read at a time
LINE = 256 << 20  # bytes of the longest line, the list of a process's pieces

log = logging.getLogger(__name__)

Answer = Callable[[dict, Iterator[bytes]], tuple[dict, bytes]]  # (request, its bytes) -> (answer, its bytes)


class Refused(OSError):
    """Raised if the other process answers that it cannot do what was asked."""


class Exchange:
    """One process's server, and its client to the servers of the others."""

    def __init__(self, answer: Answer, token: str = "", addresses: dict[int, tuple[str, int]] | None = None):
        self.token, self.addresses = token, addresses or {}
        self._server = _Server(("", 0), _Handler)
        self._server.exchange, self._server.answer = self, answer
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="exchange", daemon=True).start()

    def ask(self, process: int, request: dict, body: Iterable[bytes | memoryview] = ()) -> tuple[dict, bytes]:
        """A process's answer and the bytes after it.

        Raises OSError if the process does not answer, and Refused if it answers with an error.
        """
        with (
            socket.create_connection(self.addresses[process], timeout=SECONDS) as connection,
            connection.makefile("rb") as answer,
        ):
            connection.sendall(f"{self.token}\n{json.dumps(request)}\n".encode())
            for chunk in body:
                connection.sendall(chunk)
            reply = json.loads(answer.readline(LINE) or "{}")
            if "error" in reply:
                raise Refused(0, reply["error"])
            if "bytes" not in reply:
                raise OSError(0, f"process {process} has closed the connection")
            data = answer.read(reply["bytes"])
        return reply, data

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads, block_on_close, request_queue_size = True, False, 1024
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    exchange: Exchange
    answer: Answer

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request, client_address) -> None:
        log.info("checkpoint: a connection from %s broke", client_address[0], exc_info=True)


class _Handler(socketserver.StreamRequestHandler):
    timeout = SECONDS

    def handle(self) -> None:
        token = self.rfile.readline(100).strip()
        # compare_digest takes equally long for every wrong token.
        if not hmac.compare_digest(token, self.server.exchange.token.encode()):
            return
        request = json.loads(self.rfile.readline(LINE))
        body = self._body(request.get("bytes", 0))
        try:
            reply, data = self.server.answer(request, body)
        except OSError as error:
            reply, data = {"error": f"{error.strerror or error} ({error.filename})"}, b""
            for _ in body:  # unread data would make the kernel drop the answer
                pass
        self.wfile.write(json.dumps(reply | {"bytes": len(data)}).encode() + b"\n")
        self.wfile.write(data)

    def _body(self, left: int) -> Iterator[bytes]:
        while left:
            chunk = self.rfile.read(min(left, CHUNK))
            if not chunk:
                raise ConnectionError(0, "the connection was cut")
            left -= len(chunk)
            yield chunk


# ------------------------------------------------------------------------------------- addresses


def own_address() -> str:
    """This host's address on the route to process 0; "" in process 0, whose address is known."""
    host = processes.coordinator_host()
    if processes.first() or not host:
        return ""
    family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as way:
        way.connect(address)  # sends nothing
        return way.getsockname()[0]


def partner(hosts: list[str], process: int) -> int:
    """The process that keeps the copy of this process's pieces. Each process keeps one copy.

    hosts: the host of every process. The partner is on another host. If all are on one host, each
    process counts as a host. A host with more than half of the processes keeps some copies of its
    own.
    """
    if len(set(hosts)) == 1:
        return (process + 1) % len(hosts)
    order = sorted(range(len(hosts)), key=lambda p: (hosts.index(hosts[p]), p))
    # Processes are ordered by host. The partner is as many processes further on as the largest host
    # has. So it is on another host, unless one host has more than half of the processes.
    step = max(hosts.count(host) for host in hosts)
    return order[(order.index(process) + step) % len(hosts)]
