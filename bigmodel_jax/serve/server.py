"""Runs the app on one socket, with limits on slow and many connections and a graceful shutdown."""

import asyncio
import dataclasses
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from bigmodel_jax.config import Config
from bigmodel_jax.core import interrupts
from bigmodel_jax.inference.request import Request
from bigmodel_jax.serve.app import App, make_app
from bigmodel_jax.serve.config import LOOPBACK, ServeConfig
from bigmodel_jax.serve.served import Served, open_engines, open_served
from bigmodel_jax.serve.worker import Worker

MOST_HEAD = 32 << 10  # bytes of a request's first line and headers


class Server(uvicorn.Server):
    """A uvicorn server that makes /ready fail as soon as it is told to end."""

    def __init__(self, config: uvicorn.Config, app: App):
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.draining = True
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # the signals are handled here; uvicorn must not raise them again


def timed_protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 protocol with time limits for slow clients.

    A connection is closed in three cases: the head of a request is not complete after `seconds`;
    the client still sends the body of a request that has been answered; the client takes nothing of
    an answer for `seconds`.
    """

    class Timed(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._watch_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # These bytes did not begin a request. They belong to a head, or to a request that has
            # been answered.
            if self.cycle and self.cycle.response_complete and self._watched is not self.cycle:
                self._watch_head()

        def _watch_head(self) -> None:
            self._watched = self.cycle
            self.loop.call_later(seconds, self._check_head, self.cycle)

        def _check_head(self, before: object) -> None:
            # `cycle` is set once a request's head is complete.
            if self.cycle is before:
                self.transport.abort()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._untaken = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._untaken.cancel()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            # `close` alone would wait for a client that takes nothing.
            self.loop.call_later(seconds, self.transport.abort)

    return Timed


def serve(
    config: Config, run_dir: Path, options: ServeConfig, which: str, name: str, say: Callable[[str], None] = print
) -> None:
    """Serves a run until a signal. Raises a ValueError of one line for a run that cannot be served.

    which: the checkpoint; name: what clients call the run; say: prints the lines for the user.
    """
    options = dataclasses.replace(options, key=options.key or os.environ.get("BIGMODEL_SERVE_KEY", ""))
    listening = listen(options)
    with listening, interrupts.patient():
        served = open_served(config, run_dir, options, which, name)
        app = App(served, make_worker(served, options), options)
        protocol = timed_protocol(options.body_seconds)
        settings = uvicorn.Config(
            make_app(app),
            http=protocol,
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=options.connections,
            timeout_graceful_shutdown=max(int(options.drain_seconds), 1),
            h11_max_incomplete_event_size=MOST_HEAD,
        )
        host, port = listening.getsockname()[:2]
        say(f"{', '.join(served.names)} of step {served.step:,} on http://{host}:{port}")
        if served.writes:
            say(f"{options.slots} slots of {served.length:,} tokens; SIGTERM or Ctrl-C ends it")
        if options.host not in LOOPBACK and not options.key:
            say("warning: other machines can reach it, and no --key is set")
        Server(settings, app).run([listening])
        interrupts.take()


def make_worker(served: Served, options: ServeConfig) -> Worker:
    """Makes the worker, whose thread allocates slots and compiles programs before the first
    answer.
    """
    engines = open_engines(served, options)

    def warm_up() -> None:
        # The first name's weights have all adapters. An engine of several names chooses among
        # these.
        for engine, name in {engine: name for name, engine in reversed(engines.items())}.items():
            engine.load(served.weights[name])
            # Two tokens run both programs: the prompt's program makes the first one, and `decode`
            # the second.
            engine.submit(Request([served.tokenizer.separator], 2))
            while engine.num_unfinished:
                engine.step()

    return Worker(engines, most=options.slots + options.queue, warm_up=warm_up)


def listen(options: ServeConfig) -> socket.socket:
    """A listening socket, opened before weights are read, so that a port in use fails at once."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=512)
    except OSError as error:
        wrong = os.strerror(error.errno) if (error.errno or 0) > 0 else str(error)
        raise ValueError(f"--host = {options.host!r}, --port = {options.port}: {wrong}; give another") from None
