"""A server in this process, on a free port, of a tiny model with random weights: every test asks it
over HTTP."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Generator
from pathlib import Path

import httpx
import jax
import numpy as np
import uvicorn

from bigmodel_jax.config import Config
from bigmodel_jax.core import params
from bigmodel_jax.data import TextData, TokenizerConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.models.adapters import Several
from bigmodel_jax.nn import lora
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.serve.app import App, make_app
from bigmodel_jax.serve.config import ServeConfig
from bigmodel_jax.serve.served import Served, by_name
from bigmodel_jax.serve.server import listen, make_worker, timed_protocol

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
OPTIONS = ServeConfig(port=0, slots=4, length=128, queue=64, body_seconds=1.5, max_body=1 << 16)


class Running:
    """A server that answers at `url`. app: what it answers with."""

    def __init__(self, url: str, app: App):
        self.url, self.app, self.served = url, app, app.served

    def client(self, **options):
        """OpenAI's client."""
        import openai  # not before it is needed: a second

        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0} | options)

    def post(self, path: str, **body) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60)

    def idle(self, seconds: float = 10) -> bool:
        """Whether no text is under way, which may take a moment."""
        end = time.monotonic() + seconds
        while self.app.worker.open and time.monotonic() < end:
            time.sleep(0.01)
        return not self.app.worker.open


def result(parts: Generator):
    """What a generator returns."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            return end.value


def address(server: Running) -> tuple[str, int]:
    """Host and port, for a plain socket."""
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def tiny_served(names=("tiny",), template: str = TEMPLATE, length: int = 128) -> Served:
    data = TextData(tokenizer=TokenizerConfig(kind="bytes"), seq_len=128)
    cfg = dataclasses.replace(LlamaConfig.tiny(), vocab_size=257, init_std=0.5, max_seq_len=256)
    config = Config(cfg, NextToken(), data)
    model = cfg.make()
    weights = params.init(model.spec, jax.random.key(0))
    return Served(config, Path(), model, dict.fromkeys(names, weights), data.open_tokenizer(), template, length, 0, 0)


def adapted_served(adapters: Several) -> Served:
    """A run with adapters whose values all count: tiny, base, and a name for each adapter."""
    served = tiny_served()
    config = dataclasses.replace(served.config, adapters=adapters)
    model = config.make_model()
    flat, rng = params.paths(params.init(model.spec, jax.random.key(0))[lora.BRANCH]), np.random.default_rng(0)
    tree = params.from_paths({path: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype) for path, x in flat.items()})
    weights = by_name(config, served.weights["tiny"] | {lora.BRANCH: tree}, "tiny")
    return dataclasses.replace(served, config=config, model=model, weights=weights)


@contextlib.contextmanager
def running(served: Served, options: ServeConfig = OPTIONS):
    app = App(served, make_worker(served, options), options)
    listening = listen(options)
    settings = uvicorn.Config(
        make_app(app),
        http=timed_protocol(options.body_seconds),
        log_config=None,
        log_level="warning",
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        while httpx.get(f"{url}/ready", timeout=60).status_code != 200:
            assert thread.is_alive()
            time.sleep(0.02)
        yield Running(url, app)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
