"""The one thread that owns the engines and the devices.

Requests reach it through a queue, and it sends tokens to the event loop. Each call of `submit`
makes a `Reply`, whose texts share one queue of tokens. Other work on the devices, such as
embeddings, runs between two steps (`run`).
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from bigmodel_jax.inference.engine import Engine
from bigmodel_jax.inference.request import Request, Token
from bigmodel_jax.serve.refused import Refused

log = logging.getLogger("bigmodel_jax.serve")


class Reply:
    """The texts of one call.

    `queue` holds (which text, its token), or an exception that ends all of them.
    """

    def __init__(self, engine: str, requests: Sequence[Request]):
        self.engine, self.requests = engine, requests
        self.queue: asyncio.Queue[tuple[int, Token] | Exception] = asyncio.Queue()
        self.open = set(range(len(requests)))  # unfinished texts; only the event loop uses it, so it needs no lock
        self.numbers: dict[int, int] = {}  # the engine's number of each text; only the thread uses it


class Worker:
    """Runs the engines on a thread of its own.

    engines: by the name of a model (several names may share one); most: how many texts may be
        generated or wait at the same time.
    """

    def __init__(self, engines: Mapping[str, Engine], *, most: int, warm_up: Callable[[], None] = lambda: None):
        self._engines, self._most, self._warm_up = engines, most, warm_up
        # Requests and other work reach the thread through this queue. `_tell` sends tokens back.
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._each = list(dict.fromkeys(engines.values()))
        self._texts: dict[tuple[Engine, int], tuple[Reply, int]] = {}
        self._since: float | None = None  # when the running step began; None while the devices are idle
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self.open, self.warm, self.failed = 0, False, ""

    # ---- called on the event loop

    def start(self) -> None:
        """Starts the thread. Replies go to the event loop that is running now."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Ends the thread after its current step.

        It waits at most `seconds`, in case the thread is stuck.
        """
        self._inbox.put(None)
        self._thread.join(seconds)

    @property
    def busy_seconds(self) -> float:
        """How long the devices have been working on the current step; 0 where they are idle."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def submit(self, engine: str, requests: Sequence[Request]) -> Reply:
        """Queues the texts and returns their reply.

        Raises Refused where too many texts are under way.
        """
        self._check(len(requests))
        reply = Reply(engine, requests)
        # The texts count before the thread sees them, so that the next request is checked against
        # them.
        self.open += len(requests)
        self._inbox.put(lambda: self._begin(reply))
        return reply

    def close(self, reply: Reply, *texts: int) -> None:
        """Gives up texts of a reply, or all of them if none is named.

        Texts that have already ended stay as they are.
        """
        given_up = reply.open & set(texts) if texts else set(reply.open)
        reply.open -= given_up
        self.open -= len(given_up)
        if given_up:
            self._inbox.put(lambda: self._give_up(reply, given_up))

    async def run(self, work: Callable[[], Any] | Generator[None, None, Any]) -> Any:
        """The result of `work`, which the thread runs between two steps.

        The thread runs a generator up to its next `yield`, then a step, and so on. If the caller is
        cancelled, no further part runs.
        """
        self._check(1)
        self.open += 1
        try:
            while True:
                self._check(0)
                future: concurrent.futures.Future = concurrent.futures.Future()
                self._inbox.put(functools.partial(_fulfil, future, work))
                ended, result = await asyncio.wrap_future(future)
                if ended:
                    return result
        finally:
            self.open -= 1

    def _check(self, num: int) -> None:
        if self.failed:
            raise Refused(f"the device has failed: {self.failed}", status=503, code="device_failed")
        if self.open + num > self._most:
            raise Refused(f"{self.open} texts are under way or wait; try again later (--queue)", status=429)

    # ---- called on the thread

    def _serve(self) -> None:
        try:
            with self._working():
                self._warm_up()
            self.warm = True
            while True:
                if not self._take():
                    return
                with self._working():
                    tokens = [(engine, token) for engine in self._each for token in self._step(engine)]
                self._give_out(tokens)
        # After a failed step the slots are in an unknown state, so nothing more is generated.
        except Exception as error:
            log.exception("the engine has failed")
            self.failed = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            # A reply may have several texts, and it gets one error.
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
        """Runs the work in the inbox. Returns False when the thread must end.

        It waits for work if no text is being generated.
        """
        idle = not any(engine.num_unfinished for engine in self._each)
        while True:
            try:
                work = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if work is None:
                return False
            with self._working():
                work()
            # After the first piece of work the thread takes what else is there, without waiting.
            idle = False

    def _refuse_rest(self) -> None:
        """Answers everything that comes after a failure, so that no request waits for a dead
        thread.
        """
        while (work := self._inbox.get()) is not None:
            work()

    def _begin(self, reply: Reply) -> None:
        if self.failed:
            return self._tell([(reply, Refused(f"the device has failed: {self.failed}", status=503))])
        try:
            engine = self._engines[reply.engine]
            for index, request in enumerate(reply.requests):
                number = engine.submit(request)
                reply.numbers[index] = number
                self._texts[engine, number] = (reply, index)
        except ValueError as error:
            self._tell([(reply, Refused(str(error)))])

    def _give_up(self, reply: Reply, texts: set[int]) -> None:
        engine = self._engines[reply.engine]
        for index in texts & reply.numbers.keys():
            number = reply.numbers[index]
            if self._texts.pop((engine, number), None):
                engine.cancel(number)

    def _give_out(self, tokens: list[tuple[Engine, Token]]) -> None:
        out = []
        for engine, token in tokens:
            reply, index = self._texts[engine, token.id]
            out.append((reply, (index, token)))
            if token.finished:
                del self._texts[engine, token.id]
        if out:
            self._tell(out)

    def _tell(self, items: list[tuple[Reply, Any]]) -> None:
        """Sends tokens or errors to the event loop."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended, so nobody waits for them
            self._loop.call_soon_threadsafe(self._deliver, items)

    # ---- called on the event loop again

    def _deliver(self, items: list[tuple[Reply, Any]]) -> None:
        for reply, item in items:
            if not isinstance(item, Exception) and item[1].finished and item[0] in reply.open:
                reply.open.discard(item[0])
                self.open -= 1
            reply.queue.put_nowait(item)


def _fulfil(future: concurrent.futures.Future, work: Callable[[], Any] | Generator[None, None, Any]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(_part(work))
        except Exception as error:  # any error goes to the caller that waits for the result
            future.set_exception(error)


def _part(work: Callable[[], Any] | Generator[None, None, Any]) -> tuple[bool, Any]:
    """Runs the next part. Returns (whether it was the last, the result)."""
    if not isinstance(work, Generator):
        return True, work()
    try:
        next(work)
    except StopIteration as end:
        return True, end.value
    return False, None
