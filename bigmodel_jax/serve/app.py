"""The HTTP routes, the check of the API key, and the handlers that answer."""

import asyncio
import contextlib
import functools
import hmac
import logging
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bigmodel_jax.serve import chat, others, tokens
from bigmodel_jax.serve.answers import Answering
from bigmodel_jax.serve.body import read_json
from bigmodel_jax.serve.completions import Completions, prompts_of
from bigmodel_jax.serve.config import LOOPBACK, ServeConfig
from bigmodel_jax.serve.document import document
from bigmodel_jax.serve.metrics import Metrics
from bigmodel_jax.serve.refused import Refused, error_body
from bigmodel_jax.serve.requests import Chat, Completion, Sampled, parse, parse_checked
from bigmodel_jax.serve.served import Served
from bigmodel_jax.serve.streams import streamed, until_hangup
from bigmodel_jax.serve.tools import must_call
from bigmodel_jax.serve.worker import Worker

log = logging.getLogger("bigmodel_jax.serve")
OPEN = {"/", "/health", "/ready"}  # routes without a key: the page, and the probes
# What the Host header calls a server on the loopback address.
NAMES = tuple(f"[{host}]" if ":" in host else host for host in LOOPBACK)
PAGE = Path(__file__).with_name("page.html").read_bytes()
# The browser may connect to this server alone, and may run only the script inside the page.
POLICY = "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
Handler = Callable[[Request], Awaitable[Response]]
Answers = Completions | chat.Answers


class App:
    """The handlers of one server."""

    def __init__(self, served: Served, worker: Worker, options: ServeConfig):
        self.served, self.worker, self.options, self.metrics = served, worker, options, Metrics()
        self.answering = Answering(worker, served.tokenizer, options.request_seconds, self.metrics)
        self.draining = False
        # These gauges are read at each scrape, so that they cannot go stale.
        self.metrics.open.set_function(lambda: worker.open)
        self.metrics.slots.set(options.slots)
        self.metrics.ready.set_function(lambda: not self.not_ready())

    def not_ready(self) -> str:
        """The reason why no request should be sent here; "" if the server is ready."""
        if self.worker.failed:
            return f"the device has failed: {self.worker.failed}"
        if not self.worker.warm:
            return "the programs are being compiled"
        if self.worker.busy_seconds > self.options.stuck_seconds:
            return f"a step has not ended for {self.worker.busy_seconds:.0f} seconds"
        return "the server ends" if self.draining else ""

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        reason = self.not_ready()
        said = {"status": "not ready", "reason": reason} if reason else {"status": "ready"}
        return JSONResponse(said, 503 if reason else 200)

    async def page(self, request: Request) -> Response:
        return Response(PAGE, media_type="text/html; charset=utf-8", headers={"content-security-policy": POLICY})

    async def document(self, request: Request) -> Response:
        return JSONResponse(document())

    async def scrape(self, request: Request) -> Response:
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self.served.names]})

    async def one_model(self, request: Request) -> Response:
        return JSONResponse(self._model(self.served.known(request.path_params["name"])))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.served.created, "owned_by": "bigmodel_jax"}

    async def completions(self, request: Request) -> Response:
        asked = await self._parsed(request, parse_checked, Completion)
        self.served.known_writer(asked.model)
        prompts = await asyncio.to_thread(prompts_of, self.served, asked.prompt)
        # This runs in a thread, because compiling a constraint takes tenths of a second, and the
        # event loop must not wait.
        masks = await asyncio.to_thread(self.served.held_to, asked)
        return await self._written(request, asked, Completions(self.served, self.answering, asked, prompts, masks))

    async def chat(self, request: Request) -> Response:
        asked = await self._parsed(request, parse_checked, Chat)
        self.served.known_writer(asked.model)
        prompt = await asyncio.to_thread(chat.prompt_of, self.served, asked)
        masks = await asyncio.to_thread(self.served.held_to, asked, must_call(asked.tools, asked.choice))
        return await self._written(request, asked, chat.Answers(self.served, self.answering, asked, prompt, masks))

    async def _written(self, request: Request, asked: Sampled, answers: Answers) -> Response:
        if asked.stream:
            return streamed(answers.chunks(), answers.close)
        return await until_hangup(request, answers.whole(), self.options.request_seconds)

    async def _parsed(self, request: Request, how: Callable, cls: type) -> Any:
        return await read_json(request, self.options, functools.partial(how, cls))

    async def embeddings(self, request: Request) -> Response:
        return await self._other(request, others.Embedding, others.embeddings)

    async def classify(self, request: Request) -> Response:
        return await self._other(request, others.Class, others.classes)

    async def images(self, request: Request) -> Response:
        return await self._other(request, others.Picture, others.images)

    async def tokenize(self, request: Request) -> Response:
        return await self._read(request, tokens.Tokenize, tokens.tokenize)

    async def detokenize(self, request: Request) -> Response:
        return await self._read(request, tokens.Detokenize, tokens.detokenize)

    async def tokenizer_info(self, request: Request) -> Response:
        return JSONResponse(tokens.info(self.served))

    async def _read(self, request: Request, cls: type, answer: Callable) -> Response:
        """Answers a request that needs no device, in a thread."""
        asked = await self._parsed(request, parse, cls)
        return JSONResponse(await asyncio.to_thread(answer, self.served, asked))

    async def _other(self, request: Request, cls: type, prepare: Callable) -> Response:
        """Answers a request whose work runs on the engine's thread."""
        asked = await self._parsed(request, parse, cls)
        work = await asyncio.to_thread(prepare, self.served, asked)
        return await until_hangup(request, self.worker.run(work), self.options.request_seconds)

    # ---- around every handler

    def guarded(self, path: str, handler: Handler) -> Handler:
        """Wraps a handler: checks the key, turns errors into OpenAI's form, and counts requests and
        seconds.
        """

        async def answer(request: Request) -> Response:
            began = time.monotonic()
            try:
                self._check_host(request)
                if path not in OPEN:
                    self._check_key(request)
                response = await handler(request)
            except Refused as error:
                response = JSONResponse(error.body(), error.status, headers=_headers(error))
            except Exception:  # a bug must not end the server, and its text must not reach the client
                log.exception("%s", path)
                response = JSONResponse(error_body("the server has made a mistake; its log says more", 500), 500)
            self.metrics.requests.labels(path, response.status_code).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - began)
            return response

        return answer

    def _check_host(self, request: Request) -> None:
        """Against DNS rebinding: another site can make its name resolve to this machine, and its
        pages must get no answer.
        """
        name = re.sub(r":\d*$", "", request.headers.get("host", ""))
        if self.options.host in LOOPBACK and name not in NAMES:
            raise Refused(
                f"the Host header is {name[:60]!r}; with --host {self.options.host} it must be {', '.join(NAMES)}"
            )

    def _check_key(self, request: Request) -> None:
        kind, _, sent = request.headers.get("authorization", "").partition(" ")
        # starlette decodes headers as latin-1, so encoding restores the bytes that the client sent.
        # compare_digest takes the same time for every wrong key.
        same = hmac.compare_digest(sent.strip().encode("latin-1"), self.options.key.encode())
        if self.options.key and not (kind.lower() == "bearer" and same):
            raise Refused("the API key is missing or wrong", status=401, code="invalid_api_key")


def _headers(error: Refused) -> dict[str, str]:
    if error.status == 429:
        return {"retry-after": "1"}
    return {"connection": "close"} if error.status in (408, 413) else {}


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"{error.detail}: {request.method} {request.scope['path'][:200]!r}"
    return JSONResponse(error_body(said, error.status_code), error.status_code, headers=error.headers)


def make_app(app: App) -> Starlette:
    """The ASGI application with all routes. It starts the worker and stops it at the end."""
    routes = {
        "/": (app.page, "GET"),
        "/openapi.json": (app.document, "GET"),
        "/health": (app.health, "GET"),
        "/ready": (app.ready, "GET"),
        "/metrics": (app.scrape, "GET"),
        "/v1/models": (app.models, "GET"),
        "/v1/models/{name:path}": (app.one_model, "GET"),
        "/v1/completions": (app.completions, "POST"),
        "/v1/chat/completions": (app.chat, "POST"),
        "/v1/embeddings": (app.embeddings, "POST"),
        "/tokenizer_info": (app.tokenizer_info, "GET"),
        "/tokenize": (app.tokenize, "POST"),
        "/detokenize": (app.detokenize, "POST"),
        "/classify": (app.classify, "POST"),
        "/images": (app.images, "POST"),
    }

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette):
        app.worker.start()
        yield
        # The worker is stopped in a thread, because it still sends its last tokens to this event
        # loop.
        await asyncio.to_thread(app.worker.stop, app.options.drain_seconds)

    return Starlette(
        routes=[Route(path, app.guarded(path, f), methods=[method]) for path, (f, method) in routes.items()],
        exception_handlers={HTTPException: _http_error},
        lifespan=lifespan,
    )
