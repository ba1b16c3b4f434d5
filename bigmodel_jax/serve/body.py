"""Reads a request's body within limits of bytes, seconds and depth, and checks that its text is
valid.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from bigmodel_jax.serve.config import ServeConfig
from bigmodel_jax.serve.refused import Refused, hung_up

MOST_DEPTH = 64  # levels of nested lists and objects
LONG = 1 << 14  # bytes of a body that a thread reads


async def read_json[T](request: Request, limits: ServeConfig, make: Callable[[Any], T]) -> T:
    """The value that `make` returns for the body's JSON.

    Raises Refused if it is not JSON, too large, too slow or too deeply nested.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    # A browser sends this type from another origin only after a preflight request, which fails
    # here.
    if kind != "application/json":
        raise Refused(f"the content-type is {kind!r}; it must be 'application/json'", status=415)
    try:
        async with asyncio.timeout(limits.body_seconds):
            text = await _read(request, limits.max_body)
    except TimeoutError:
        raise Refused(f"the body took longer than {limits.body_seconds:g} seconds", status=408) from None
    except ClientDisconnect:
        raise hung_up() from None
    # To read a body of megabytes takes seconds, in which the event loop must answer others.
    return await asyncio.to_thread(_made, text, make) if len(text) > LONG else _made(text, make)


def _made[T](text: bytes, make: Callable[[Any], T]) -> T:
    try:
        found = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is not JSON ({error})") from None
    check_tree(found)
    return make(found)


async def _read(request: Request, most: int) -> bytes:
    size = request.headers.get("content-length", "0")
    # A large body is refused by its header alone, before any byte of it is read.
    if not size.isascii() or not size.isdecimal() or len(size) > 18 or int(size) > most:
        raise _too_large(most)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        # A client can send more than its header says, or send no header.
        if size > most:
            raise _too_large(most)
        parts.append(part)
    return b"".join(parts)


def _too_large(most: int) -> Refused:
    return Refused(f"the body is larger than {most:,} bytes (--max_body)", status=413)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def check_tree(value: Any) -> None:
    """Raises Refused where a value is nested too deeply, or a text has half of a surrogate pair.

    The tree is walked level by level and not by recursion, so depth cannot exhaust the stack.
    """
    level, depth = [value], 0
    while level:
        if depth > MOST_DEPTH:
            raise Refused(f"the body is nested deeper than {MOST_DEPTH} levels")
        for item in level:
            for text in [item] if isinstance(item, str) else item if isinstance(item, dict) else ():
                _check_text(text)
        level = [x for item in level if isinstance(item, dict | list) for x in _inside(item)]
        depth += 1


def _inside(item: dict | list) -> Any:
    return item.values() if isinstance(item, dict) else item


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Refused("the body holds half of a surrogate pair, which is no text") from None
