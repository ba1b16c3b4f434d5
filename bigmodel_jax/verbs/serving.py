"""Verbs that answer others: serve."""

import dataclasses
import importlib.util
from collections.abc import Sequence

from rich.console import Console

from bigmodel_jax import runtime
from bigmodel_jax.core.options import Unnamed, parse
from bigmodel_jax.serve.config import ServeConfig
from bigmodel_jax.verbs.base import RUN, STEP, Verb, one_target, run_dir_of

NEEDED = ("starlette", "uvicorn", "prometheus_client")


@dataclasses.dataclass(frozen=True)
class Serve:
    options: Unnamed
    step: str = ""  # which checkpoint: a step, or best; empty: the newest
    name: str = ""  # what clients call the model; empty: the name of the run's folder


def serve(args: Sequence[str]) -> None:
    target, options = one_target("serve", args, "RUN")
    given = parse(Serve(ServeConfig()), options, prog=f"launch.py serve {target}")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ValueError(f"serve: {missing[0]} is not installed; uv sync --extra serve")
    from bigmodel_jax.training import run_folder

    config, run_dir = run_folder.load(target), run_dir_of(target)
    runtime.keep_programs()
    from bigmodel_jax.serve import server

    console = Console(highlight=False, soft_wrap=True)
    server.serve(config, run_dir, given.options, given.step, given.name, lambda text: console.print(text, markup=False))


VERBS = {
    "serve": Verb(
        serve,
        "serve RUN [--port 8000] [--slots 16] [--key KEY]",
        "answer OpenAI's API with a run's newest checkpoint",
        f"RUN           {RUN}\n"
        "--host        the address to listen on; without it: 127.0.0.1, this machine alone\n"
        "--port        without it: 8000; 0 is one that is free\n"
        "--slots       texts that are generated at a time; without it: 16\n"
        "--length      tokens of prompt and answer together; without it: the model's own\n"
        "--cache       compute, or int8: keys and values in 8 bits, a quarter of float32\n"
        "--key         what clients must send as their API key, as BIGMODEL_SERVE_KEY also\n"
        "              says; without it: nothing\n"
        "--name        what clients call the model; without it: the folder's name\n"
        f"{STEP}\n"
        "--queue, --max_body, --body_seconds, --request_seconds, --drain_seconds,\n"
        "--stuck_seconds, --connections: limits, as docs/serve.md has them\n\n"
        "/v1/models, /v1/completions, /v1/chat/completions; /health, /ready, /metrics.\n"
        "SIGTERM lets answers that have begun end.",
        ("serve runs/lm_tiny", "serve runs/smollm2-135m-instruct --slots 32 --port 8080"),
    ),
}
