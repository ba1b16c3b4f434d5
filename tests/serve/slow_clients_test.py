"""Clients that are slow, hang up, or ask at the same time as others: no connection, slot or thread
is theirs for long."""

import asyncio
import concurrent.futures
import socket
import threading
import time

import pytest
from starlette.requests import Request

from bigmodel_jax.serve import tokens
from bigmodel_jax.serve.body import LONG, read_json
from bigmodel_jax.serve.refused import Refused
from bigmodel_jax.serve.streams import streamed, until_hangup
from bigmodel_jax.serve.worker import Worker
from servers import OPTIONS, address, tiny_served


def test_names_of_special_tokens_stay_text_while_another_thread_reads_them_as_tokens():
    served, name = tiny_served(), "<|endoftext|>"
    stop = threading.Event()

    def read_tokens() -> list[int]:
        found = []
        while not stop.is_set():
            found.append(tokens.tokenize(served, tokens.Tokenize(name, add_special_tokens=False))["count"])
        return found

    with concurrent.futures.ThreadPoolExecutor() as pool:
        other = pool.submit(read_tokens)
        try:
            lengths = {len(served.prompt(name * 500)) for _ in range(50)}
        finally:
            stop.set()
        assert set(other.result()) == {1}
    assert lengths == {1 + 500 * len(name)}


def test_a_long_prompt_leaves_the_event_loop_to_others():
    served, ended, turns = tiny_served(), threading.Event(), 0

    def encode() -> None:
        served.prompt("the quick brown " * 12_500)
        ended.set()

    threading.Thread(target=encode).start()
    while not ended.wait(0.0005):
        turns += 1
    assert turns > 10


@pytest.mark.slow
def test_slow_heads_and_slow_bodies_are_ended(server):
    began = time.monotonic()
    post = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for head in (post[:-30], post + b"Content-Length: 100\r\n\r\n{"):
        with socket.create_connection(address(server), timeout=10) as connection:
            connection.sendall(head)
            said = connection.recv(1 << 16)
            assert said == b"" or b"408" in said.split(b"\r\n")[0]
    assert time.monotonic() - began < 6 * OPTIONS.body_seconds


def test_a_head_that_is_slow_after_an_answer_is_ended(server):
    with socket.create_connection(address(server), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connection.settimeout(0.2)
        connection.sendall(b"GET /health HTTP/1.1\r\nX: ")
        began, ended = time.monotonic(), False
        while not ended and time.monotonic() - began < 20:
            try:
                connection.sendall(b"y")
                ended = connection.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
    assert ended


@pytest.mark.slow
def test_a_client_that_takes_nothing_of_its_answers_is_ended(server):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(address(server))
        began, ended = time.monotonic(), False
        connection.settimeout(1)
        while not ended and time.monotonic() - began < 60:
            try:
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
            except TimeoutError:
                continue
            except OSError:
                ended = True
    assert ended


def test_a_client_that_hangs_up_before_its_stream_begins_frees_its_slot():
    closed = []

    async def chunks():
        yield {}

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        await asyncio.sleep(0)

    asyncio.run(streamed(chunks(), lambda: closed.append(1))({"type": "http", "asgi": {}}, receive, send))
    assert closed == [1]


def test_a_client_that_hangs_up_within_its_body_is_no_mistake_of_the_server():
    async def receive():
        return {"type": "http.disconnect"}

    request = Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)
    with pytest.raises(Refused, match="hung up"):
        asyncio.run(read_json(request, OPTIONS, dict))


def test_a_long_body_is_read_beside_the_event_loop():
    async def thread_of(size: int) -> threading.Thread:
        async def receive():
            return {"type": "http.request", "body": b'"' + b"a" * size + b'"', "more_body": False}

        request = Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)
        return await read_json(request, OPTIONS, lambda _: threading.current_thread())

    assert asyncio.run(thread_of(9)) is threading.current_thread()
    assert asyncio.run(thread_of(LONG)) is not threading.current_thread()


@pytest.mark.parametrize(("hangs_up", "status"), [(True, 499), (False, 504)])
def test_pictures_end_with_their_client_or_their_time_and_others_are_answered_meanwhile(hangs_up, status):
    parts = []

    def endless():
        while True:
            parts.append(1)
            yield

    async def main():
        worker, hung_up = Worker({}, most=4), asyncio.Event()
        worker.start()

        async def receive():
            await hung_up.wait()
            return {"type": "http.disconnect"}

        request = Request({"type": "http"}, receive)
        answer = asyncio.create_task(until_hangup(request, worker.run(endless()), 30 if hangs_up else 0.2))
        while len(parts) < 3:
            await asyncio.sleep(0.001)
        assert await worker.run(lambda: "another's answer") == "another's answer"
        if hangs_up:
            hung_up.set()
        with pytest.raises(Refused) as refused:
            await answer
        assert refused.value.status == status
        await worker.run(lambda: None)  # runs after the part that had begun, so that part has ended
        ran = len(parts)
        await asyncio.sleep(0.05)
        assert len(parts) == ran
        assert worker.open == 0
        worker.stop(5)

    asyncio.run(main())
