"""The verb `serve`, which answers HTTP requests with a run's model."""

import dataclasses
import importlib.util
from collections.abc import Sequence

from bigmodel_jax import runtime
from bigmodel_jax.core.options import Unnamed, parse
from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.serve.config import ServeConfig
from bigmodel_jax.verbs.base import RUN, STEP, Verb, one_target, run_dir_of

NEEDED = ("starlette", "uvicorn", "prometheus_client")  # packages of the extra `serve`


@dataclasses.dataclass(frozen=True)
class Serve:
    """Options of `serve`, beside those of ServeConfig."""

    options: Unnamed
    step: str = ""  # the checkpoint: a step, or best; empty: the newest
    name: str = ""  # the model's name for clients; empty: the name of the run's folder


def serve(args: Sequence[str]) -> None:
    """Runs the verb `serve`: serves a run until a signal ends it."""
    target, options = one_target("serve", args, "RUN")
    given = parse(Serve(ServeConfig()), options, prog=f"launch.py serve {target}")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ValueError(f"serve: {missing[0]} is not installed; uv sync --extra serve")
    from bigmodel_jax.training import run_folder

    config, run_dir = run_folder.load(target), run_dir_of(target)
    runtime.keep_programs()
    from bigmodel_jax.serve import server

    console = make_console(highlight=False, soft_wrap=True)
    server.serve(config, run_dir, given.options, given.step, given.name, lambda text: console.print(text, markup=False))


VERBS = {
    "serve": Verb(
        serve,
        "serve RUN [--port 8000] [--slots 16] [--key KEY]",
        "answer OpenAI's API with a run's newest checkpoint",
        f"RUN           {RUN}\n"
        "--host        the address to listen on; without it: 127.0.0.1, this machine alone\n"
        "--port        the port to listen on; 0 is any free port; without it: 8000\n"
        "--slots       texts that are generated at the same time; without it: 16\n"
        "--length      tokens of a prompt and its answer; without it: the model's maximum,\n"
        "              at most 2048\n"
        "--cache       compute, or int8: 8-bit keys and values, a quarter of float32\n"
        "--key         the API key that clients must send; without it: the variable\n"
        "              BIGMODEL_SERVE_KEY, or no key\n"
        "--name        the model's name for clients; without it: the folder's name\n"
        f"{STEP}\n"
        "--queue, --max_body, --body_seconds, --request_seconds, --drain_seconds,\n"
        "--stuck_seconds, --connections: limits, which docs/serve.md explains\n\n"
        "Routes: /v1/models, /v1/completions, /v1/chat/completions, /health, /ready,\n"
        "/metrics. After SIGTERM, answers that have begun are finished.",
        ("serve runs/lm_tiny", "serve runs/smollm2-135m-instruct --slots 32 --port 8080"),
    ),
}
