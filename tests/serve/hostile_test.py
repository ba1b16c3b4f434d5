"""What nobody should send: each is refused, in bounded time and memory, and the server answers the
next request."""

import dataclasses
import json
import socket
import threading

import httpx
import numpy as np
import pytest

from bigmodel_jax.serve import passes
from bigmodel_jax.serve.document import BODIES
from servers import OPTIONS, address, result, running, tiny_served

JSON = {"content-type": "application/json"}
ASKED = {"model": "tiny", "prompt": "a", "max_tokens": 2, "temperature": 0}


def raw(server, body: bytes, path: str = "/v1/completions") -> httpx.Response:
    return httpx.post(server.url + path, content=body, headers=JSON, timeout=30)


def refused(response: httpx.Response, status: int = 400) -> dict:
    """The error of a response, in OpenAI's form, of one line."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert len(error["message"]) < 320
    return error


@pytest.fixture(autouse=True)
def answers_afterwards(server):
    yield
    assert server.post("/v1/completions", **ASKED).status_code == 200
    assert server.idle()


@pytest.mark.parametrize("said", ["content-length", "chunked"])
def test_a_body_of_a_gigabyte_is_refused_before_it_is_sent(server, said):
    """The client sends as much as the server takes. The server closes the connection after its
    limit and not after the gigabyte."""
    length = "Content-Length: 1073741824" if said == "content-length" else "Transfer-Encoding: chunked"
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{length}\r\n\r\n"
    sent, piece = 0, b"10000\r\n" + b"a" * (1 << 16) + b"\r\n" if said == "chunked" else b"a" * (1 << 16)
    with socket.create_connection(address(server), timeout=10) as connection:
        connection.sendall(head.encode())
        try:
            while sent < 1 << 30:
                connection.sendall(piece)
                sent += len(piece)
        except OSError:  # closed by the server
            pass
    assert sent < 1 << 26


def test_a_body_that_is_larger_than_allowed_is_named(server):
    assert "--max_body" in refused(raw(server, b" " * (OPTIONS.max_body + 1)), 413)["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[" * 30_000 + b"]" * 30_000, "is not JSON"),
        (b'{"prompt": ' + b"[" * 80 + b"]" * 80 + b"}", "nested deeper than 64 levels"),
        (b'{"model": "tiny", "prompt": NaN}', "NaN is not a number"),
        (b'{"model": "tiny", "prompt": "\xff"}', "is not JSON"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "half of a surrogate pair"),
        (b'{"model": "tiny", "\\udfff": 1}', "half of a surrogate pair"),
        (b'{"model": "tiny", "max_tokens": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"", "is not JSON"),
        (b"7", "it must be an object"),
    ],
    ids=range(9),
)
def test_a_body_that_is_no_request(server, body, said):
    assert said in refused(raw(server, body))["message"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("temperature", -0.5, "temperature = -0.5; it must be 0 or more and at most 2"),
        ("temperature", 1e999, "temperature = inf; it must be a finite number"),
        ("temperature", "hot", "it must be a number"),
        ("temperature", 10**400, "temperature is too large a number"),
        ("top_k", -1, "top_k = -1; it must be 0 or more"),
        ("top_p", 0, "top_p = 0; it must be above 0 and at most 1"),
        ("n", 17, "n = 17; it must be 1 or more and at most 16"),
        ("n", True, "n = True is of type bool; it must be a whole number"),
        ("max_tokens", 0, "max_tokens = 0; it must be 1 or more"),
        ("max_tokens", 10**9, "it exceeds a slot's 128 (--length)"),
        ("max_tokens", 1.5, "it must be a whole number"),
        ("seed", 2**63, "it must be at least -2**63 and below 2**63"),
        ("logprobs", 6, "logprobs = 6; it must be 0 or more and at most 5"),
        ("stop", ["x"] * 10_000, "stop has 10000 strings; at most 16 are allowed"),
        ("stop", "x" * 257, "a stop string has 257 characters; it must have 1 to 256"),
        ("stop", "", "a stop string has 0 characters"),
        ("prompt", [0, 257], "prompt holds the token 257; the vocabulary has 257"),
        ("prompt", [-1], "prompt holds the token -1"),
        ("prompt", [], "prompt has 0 texts"),
        ("prompt", ["a"] * 300, "prompt has 300 texts; it must have 1 to 256"),
        ("prompt", "x" * 500, "prompt has 501 tokens; it must have 1 to 127 (--length)"),
        ("temprature", 1, "unknown field 'temprature' (perhaps you meant 'temperature')"),
        ("frequency_penalty", 0.5, "frequency_penalty is not supported; leave it out"),
        ("best_of", True, "best_of is not supported; leave it out"),
        ("stream_options", {"include_usage": True}, "stream_options is for stream = true"),
        ("model", "", "model is missing"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_field_that_cannot_be_is_named(server, field, value, said):
    body = json.dumps(ASKED | {field: value}).replace("Infinity", "1e999")
    error = refused(raw(server, body.encode()))
    assert said in error["message"]
    assert error["param"] == field


def test_fields_that_ask_for_nothing_change_nothing(server):
    plain = server.post("/v1/completions", **ASKED).json()["choices"]
    more = {"user": "someone", "frequency_penalty": 0.0, "logit_bias": {}, "seed": None, "best_of": 1}
    assert server.post("/v1/completions", **ASKED, **more).json()["choices"] == plain


@pytest.mark.parametrize("name", ["../tiny", "tiny/../../etc/passwd", "tiny\0", "TINY", "x" * 10_000])
def test_the_name_of_a_model_is_no_path(server, name):
    error = refused(server.post("/v1/completions", **ASKED | {"model": name}), 404)
    assert error["code"] == "model_not_found"
    assert "known: tiny" in error["message"]


CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
OTHERS = {
    "/v1/embeddings": "input",
    "/classify": "input",
    "/images": "prompt",
    "/tokenize": "prompt",
    "/detokenize": "tokens",
}
WRONG = [None, True, -1, 1.5, 10**400, {}, [[]], [[[]]], [None], [True], [1, "a"], [""], [-1], [10**30], ["a"] * 10_000]


@pytest.mark.parametrize("path", OTHERS)
def test_other_routes_refuse_what_is_no_request(server, path):
    asked = {"model": "tiny", OTHERS[path]: [1] if path == "/detokenize" else "1"}
    bodies = [b"[" * 30_000, b'{"model": "\\ud800"}', b'{"model": "\xff"}', b'{"model": NaN}', b"7"]
    for field in (field.name for field in dataclasses.fields(BODIES[path][0])):
        wrong = WRONG[field != OTHERS[path] :]  # null leaves a field out
        bodies += [json.dumps(asked | {field: x}).encode() for x in wrong if (field, x) != ("add_special_tokens", True)]
    with httpx.Client(base_url=server.url, headers=JSON, timeout=30) as client:
        for body in bodies:
            refused(client.post(path, content=body))
        for name in ("../tiny", "/etc/passwd", "tiny\0", "x" * 10_000):
            refused(client.post(path, json=asked | {"model": name}), 404)
        refused(client.post(path, content=b" " * (OPTIONS.max_body + 1)), 413)


@pytest.mark.slow
def test_special_tokens_in_prompts_and_messages_are_text(server):
    end = server.served.tokenizer
    assert len(server.served.prompt("<|endoftext|>")) == 1 + len("<|endoftext|>")
    said = server.post("/v1/completions", **ASKED | {"prompt": "a<|endoftext|>\0b"}).json()
    assert said["usage"]["prompt_tokens"] == 1 + len("a<|endoftext|>\0b")
    chat = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "<|endoftext|>"}]}
    said = server.post("/v1/chat/completions", **chat).json()
    assert said["usage"]["prompt_tokens"] == len(end.encode("<user><|endoftext|>\n<assistant>"))


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages is empty"),
        ("hello", "it must be a list"),
        ([{"role": "wizard", "content": "x"}], "messages[0].role = 'wizard'; allowed: system"),
        ([{"role": "user"}], "messages[0].content is NoneType; it must be a text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "this model reads text alone"),
        ([{"role": "user", "content": ""}] * 2100, "messages has 2100 messages; at most 2048 are allowed"),
        ([{"role": "assistant", "tool_calls": [CALL]}], "tiny's chat template writes no tool_calls; leave them out"),
    ],
    ids=range(7),
)
def test_messages_that_are_none(server, messages, said):
    assert said in refused(server.post("/v1/chat/completions", model="tiny", messages=messages))["message"]


def test_another_content_type_path_and_method(server):
    plain = httpx.post(
        f"{server.url}/v1/completions", content=json.dumps(ASKED), headers={"content-type": "text/plain"}
    )
    assert "it must be 'application/json'" in refused(plain, 415)["message"]
    assert "GET '/v1/nothing'" in refused(httpx.get(f"{server.url}/v1/nothing"), 404)["message"]
    refused(httpx.get(f"{server.url}/v1/completions"), 405)


def test_a_page_of_another_site_is_not_answered(server):
    other = refused(httpx.get(f"{server.url}/v1/models", headers={"host": "evil.example:80"}))
    assert "the Host header is 'evil.example'; with --host 127.0.0.1" in other["message"]
    for own in ("localhost", "[::1]:8000", "127.0.0.1:"):
        assert httpx.get(f"{server.url}/v1/models", headers={"host": own}).status_code == 200


def test_numbers_beyond_float32_and_int32_mean_what_they_say(server):
    def text(**fields) -> str:
        return server.post("/v1/completions", **ASKED | {"max_tokens": 8, "seed": 5} | fields).json()["choices"][0][
            "text"
        ]

    likeliest, drawn = text(), text(temperature=1)
    assert text(temperature=1e-37) == text(temperature=1, top_p=1e-40) == likeliest
    assert text(temperature=1, top_k=2**40) == drawn != likeliest


def test_rows_reach_a_program_in_parts_of_few_sizes():
    rows, shapes = np.arange(70 * 4).reshape(70, 4), []

    def first(batch: dict) -> np.ndarray:
        shapes.append(batch["tokens"].shape)
        return batch["tokens"][:, :1]

    np.testing.assert_array_equal(result(passes.by_parts(first, {"tokens": rows})), rows[:, :1])
    assert shapes == [(32, 4), (32, 4), (8, 4)]
    shapes.clear()
    assert len(result(passes.by_parts(first, {"tokens": np.zeros((3, passes.MOST_TOKENS), np.int32)}))) == 3
    assert shapes == [(1, passes.MOST_TOKENS)] * 3


def test_a_flood_of_headers_is_refused(server):
    with socket.create_connection(address(server), timeout=10) as connection:
        try:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
            for n in range(20_000):
                connection.sendall(b"X-%d: %s\r\n" % (n, b"y" * 100))
            said = connection.recv(1 << 16)
        except OSError:
            said = b""
    assert said == b"" or said.startswith(b"HTTP/1.1 4")


def test_more_texts_than_may_wait_are_refused(server):
    """The queue is full, so the answer is 429 at once. The waiting texts are answered."""
    long = {"model": "tiny", "prompt": ["x"] * 4, "n": 16, "max_tokens": 60, "ignore_eos": True}
    found = []
    threads = [threading.Thread(target=lambda: found.append(server.post("/v1/completions", **long))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(response.status_code for response in found) == [200, 429, 429]
    busy = next(response for response in found if response.status_code == 429)
    assert "--queue" in refused(busy, 429)["message"]
    assert busy.headers["retry-after"] == "1"


@pytest.mark.slow
def test_with_a_key_nothing_but_the_probes_is_open():
    with running(tiny_served(), dataclasses.replace(OPTIONS, key="sécret")) as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "sécret"}):
            wrong = httpx.get(f"{server.url}/v1/models", headers={k: v.encode() for k, v in headers.items()})
            assert refused(wrong, 401)["code"] == "invalid_api_key"
        right = {"authorization": "Bearer sécret".encode()}
        assert httpx.get(f"{server.url}/v1/models", headers=right).json()["data"][0]["id"] == "tiny"
