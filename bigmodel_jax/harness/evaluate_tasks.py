"""Evaluates a run's checkpoint on lm-eval tasks, and writes results and answers to the run's
folder."""

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bigmodel_jax.config import Config
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import files, processes, sharding
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer
from bigmodel_jax.inference.compiled import without_stages
from bigmodel_jax.report.harness_results import FOLDER
from bigmodel_jax.training.checks import check_ids
from bigmodel_jax.training.saved import CHAT_TEMPLATE, chosen, load_weights, open_tokenizer

log = logging.getLogger("bigmodel_jax")


class Asked(NamedTuple):
    """The user's request.

    - tasks: names of lm-eval tasks, YAML files, or folders of YAML files
    - fewshot: examples before each question; None = the task's own number
    - limit: number of questions of each task, the first ones; None = all
    - chat: put each question as a user's message into the chat template
    """

    tasks: tuple[str, ...]
    fewshot: int | None = None
    limit: int | None = None
    chat: bool = False


def evaluate_tasks(config: Config, run_dir: Path, given: Asked, which: str = "", adapter: str = "") -> dict:
    """lm-eval's results for one checkpoint, also written to RUN/harness/. All processes of a job
    call it.

    which, adapter: as in `load_weights`. Raises ValueError, one line, for a user's mistake.
    """
    config = dataclasses.replace(config, data=config.data.of_run(run_dir))
    validate(config, jax.device_count())
    chosen(config, adapter)
    tokenizer, mesh = _check(config, run_dir, given), sharding.make_mesh(config.parallel)
    if (stages := mesh.shape["stage"]) > 1 and processes.first():
        log.warning(
            "parallel.stage = %d: lm-eval's tasks run without a pipeline; its devices join parallel.fsdp", stages
        )
    mesh = without_stages(mesh)
    with _quiet():
        from bigmodel_jax.harness import engine_lm, tasks  # these import lm-eval

        asked = tasks.load(given.tasks)
        weights, step = load_weights(config, run_dir, mesh, which, adapter=adapter)
        template = (run_dir / CHAT_TEMPLATE).read_text() if given.chat else ""
        model = engine_lm.EngineLM(config, mesh, weights, tokenizer, template)
        found = tasks.run(model, asked, num_fewshot=given.fewshot, limit=given.limit, apply_chat_template=given.chat)
    found = {"step": step} | found
    if processes.first():
        _write(run_dir, step, given, found)
    return found


def _check(config: Config, run_dir: Path, given: Asked) -> Tokenizer:
    """The run's tokenizer.

    Raises ValueError for mistakes that can be found before weights are read.
    """
    option = f"--harness {' '.join(given.tasks)}"
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(f"{option}: the package lm-eval is not installed: uv sync --extra harness")
    tokenizer = open_tokenizer(config, run_dir)
    model = config.make_model()
    if tokenizer is None or model.make_cache is None or model.decoder_start is not None:
        raise ValueError(
            f"{option}: a {type(config.model).__name__} on {type(config.data).__name__} is no decoder of text; its tasks "
            "ask for continuations, which a LlamaConfig on TextData gives"
        )
    if given.chat and not (run_dir / CHAT_TEMPLATE).is_file():
        raise ValueError(f"--chat True: {run_dir} holds no {CHAT_TEMPLATE}; it comes with an imported chat model")
    check_ids(config.model, tokenizer.vocab_size, f"{option}: ")
    return tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A block in which lm-eval logs only errors, and shows progress only in process 0 on a
    terminal.

    lm-eval must not fork worker processes, because JAX's threads do not survive a fork.
    """
    # With this lm-eval starts no worker processes.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    shown = processes.first() and sys.stderr.isatty()
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(sys.stderr if shown else nowhere):
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _write(run_dir: Path, step: int, given: Asked, found: dict) -> None:
    """Writes results to RUN/harness/<step>.<tasks>.json, and all answers to .samples.jsonl beside
    it."""
    names = "+".join(re.sub(r"[^\w-]", "_", Path(one).stem) for one in given.tasks)[:80]
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    # Answers go to a file of their own, because they are much larger than the results.
    samples = [{"task": task} | one for task, many in found.get("samples", {}).items() for one in many]
    results = {name: value for name, value in found.items() if name != "samples"}
    stem = f"{step:08d}.{names}"
    files.replace(folder / f"{stem}.samples.jsonl", "".join(f"{_json(one)}\n" for one in samples))
    files.replace(folder / f"{stem}.json", _json(results, indent=2) + "\n")


def _json(value: Any, **how: Any) -> str:
    from lm_eval.utils import handle_non_serializable

    return json.dumps(value, default=handle_non_serializable, ensure_ascii=False, **how)
