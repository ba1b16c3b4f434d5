"""Answers as server-sent events, and answers that stop when the client hangs up."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from bigmodel_jax.serve.refused import Refused, hung_up, too_long

# Without the second header nginx would hold events back until its buffer is full.
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(value: Any) -> bytes:
    """One server-sent event with a JSON value, or with bytes as they are."""
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()) + b"\n\n"


class Closing(StreamingResponse):
    """A streaming response that calls `close` at its end, even if it never began.

    If the client has hung up before, the response never begins.
    """

    def __init__(self, content: AsyncIterator[bytes], close: Callable[[], None]):
        super().__init__(content, media_type="text/event-stream", headers=HEADERS)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


def streamed(chunks: AsyncIterator[dict], close: Callable[[], None]) -> StreamingResponse:
    """A response with one event per chunk and [DONE] at the end.

    An error becomes the last event before it. close: gives up the texts that are not complete.
    """

    async def events() -> AsyncIterator[bytes]:
        async with contextlib.aclosing(chunks):
            try:
                async for chunk in chunks:
                    yield event(chunk)
            except Refused as error:
                yield event(error.body())
            yield event(b"[DONE]")

    return Closing(events(), close)


async def until_hangup(request: Request, answer: Awaitable[dict], seconds: float) -> JSONResponse:
    """The answer as a response. The work is cancelled as soon as the client hangs up, or after
    `seconds`.
    """
    working, watching = asyncio.ensure_future(answer), asyncio.ensure_future(_hangup(request))
    try:
        # Without this, a client that hangs up would leave its texts in their slots.
        done, _ = await asyncio.wait({working, watching}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise too_long(seconds)
        if not working.done():
            raise hung_up()
        return JSONResponse(working.result())
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _hangup(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
