"""The one thread that owns the engines and the devices: requests come in by a queue, tokens go out to the event loop.

Each call of `submit` makes a `Reply`, whose texts share one queue of tokens. Whatever else needs the devices, such as
embeddings, runs between two steps (`run`).
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bigmodel_jax.inference.engine import Engine, Request, Token
from bigmodel_jax.serve.refused import Refused

log = logging.getLogger("bigmodel_jax.serve")


class Reply:
    """The texts of one call: `queue` holds (which text, its token), or an exception that ends them all."""

    def __init__(self, engine: str, requests: Sequence[Request]):
        self.engine, self.requests = engine, requests
        self.queue: asyncio.Queue[tuple[int, Token] | Exception] = asyncio.Queue()
        self.open = set(range(len(requests)))  # texts that have not ended; of the event loop
        self.numbers: dict[int, int] = {}  # the engine's number of each text; of the worker


class Worker:
    """engines: by the name of a model. most: texts at a time, those that wait included."""

    def __init__(self, engines: Mapping[str, Engine], *, most: int, warm_up: Callable[[], None] = lambda: None):
        self._engines, self._most, self._warm_up = engines, most, warm_up
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._texts: dict[tuple[str, int], tuple[Reply, int]] = {}
        self._since: float | None = None  # when the devices were given what they have not finished
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self.open, self.warm, self.failed = 0, False, ""

    # ---- of the event loop

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Ends the thread after the step that it is in; gives up a thread that is stuck."""
        self._inbox.put(None)
        self._thread.join(seconds)

    @property
    def busy_seconds(self) -> float:
        """How long the devices have worked on one step; 0 where they do not."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def submit(self, engine: str, requests: Sequence[Request]) -> Reply:
        """Refused where so many texts are not taken on."""
        self._check(len(requests))
        reply = Reply(engine, requests)
        self.open += len(requests)
        self._inbox.put(lambda: self._begin(reply))
        return reply

    def close(self, reply: Reply, *texts: int) -> None:
        """Gives up texts of a reply, all of them where none is named; those that have ended stay as they are."""
        given_up = reply.open & set(texts) if texts else set(reply.open)
        reply.open -= given_up
        self.open -= len(given_up)
        if given_up:
            self._inbox.put(lambda: self._give_up(reply, given_up))

    async def run(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, which the engine's thread does between two steps."""
        self._check(1)
        future: concurrent.futures.Future = concurrent.futures.Future()
        self.open += 1
        try:
            self._inbox.put(lambda: _fulfil(future, work))
            return await asyncio.wrap_future(future)
        finally:
            self.open -= 1

    def _check(self, num: int) -> None:
        if self.failed:
            raise Refused(f"the device has failed: {self.failed}", status=503, code="device_failed")
        if self.open + num > self._most:
            raise Refused(f"{self.open} texts are under way or wait; try again later (--queue)", status=429)

    # ---- of the thread

    def _serve(self) -> None:
        try:
            with self._working():
                self._warm_up()
            self.warm = True
            while True:
                if not self._take():
                    return
                with self._working():
                    tokens = [(name, token) for name, engine in self._engines.items() for token in self._step(engine)]
                self._give_out(tokens)
        except Exception as error:  # a step that fails leaves slots in an unknown state: nothing more is generated
            log.exception("the engine has failed")
            self.failed = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            for reply in {id(reply): reply for reply, _ in self._texts.values()}.values():
                self._tell([(reply, Refused(f"the device has failed: {self.failed}", status=503))])
            self._refuse_rest()

    def _step(self, engine: Engine) -> list[Token]:
        return engine.step() if engine.num_unfinished else []

    @contextlib.contextmanager
    def _working(self):
        self._since = time.monotonic()
        yield
        self._since = None

    def _take(self) -> bool:
        """Does what has come in, waiting for it where no text goes on; False at the end."""
        idle = not any(engine.num_unfinished for engine in self._engines.values())
        while True:
            try:
                work = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if work is None:
                return False
            with self._working():
                work()
            idle = False

    def _refuse_rest(self) -> None:
        """Answers what comes after a failure: nothing waits for a thread that has ended."""
        while (work := self._inbox.get()) is not None:
            work()

    def _begin(self, reply: Reply) -> None:
        if self.failed:
            return self._tell([(reply, Refused(f"the device has failed: {self.failed}", status=503))])
        try:
            for index, request in enumerate(reply.requests):
                number = self._engines[reply.engine].submit(request)
                reply.numbers[index] = number
                self._texts[reply.engine, number] = (reply, index)
        except ValueError as error:
            self._tell([(reply, Refused(str(error)))])

    def _give_up(self, reply: Reply, texts: set[int]) -> None:
        for index in texts & reply.numbers.keys():
            number = reply.numbers[index]
            if self._texts.pop((reply.engine, number), None):
                self._engines[reply.engine].cancel(number)

    def _give_out(self, tokens: list[tuple[str, Token]]) -> None:
        out = []
        for name, token in tokens:
            reply, index = self._texts[name, token.id]
            out.append((reply, (index, token)))
            if token.finished:
                del self._texts[name, token.id]
        if out:
            self._tell(out)

    def _tell(self, items: list[tuple[Reply, Any]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens
            self._loop.call_soon_threadsafe(self._deliver, items)

    # ---- of the event loop again

    def _deliver(self, items: list[tuple[Reply, Any]]) -> None:
        for reply, item in items:
            if not isinstance(item, Exception) and item[1].finished and item[0] in reply.open:
                reply.open.discard(item[0])
                self.open -= 1
            reply.queue.put_nowait(item)


def _fulfil(future: concurrent.futures.Future, work: Callable[[], Any]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(work())
        except Exception as error:  # whatever it is belongs to who waits
            future.set_exception(error)
