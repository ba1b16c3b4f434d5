"""The beginning of a run: its data, and a state that is fresh, from another run or from a
checkpoint.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bigmodel_jax.checkpoint import kept, store
from bigmodel_jax.config import Config
from bigmodel_jax.core import mirror, processes
from bigmodel_jax.core.params import Tree
from bigmodel_jax.data.base import Rows
from bigmodel_jax.data.experience import Experience
from bigmodel_jax.data.loader import EvalBatches, Sampler, eval_batches, make_iterator
from bigmodel_jax.data.tokenizers.tokenizers import load_tokenizer, num_ids
from bigmodel_jax.report import sheet
from bigmodel_jax.training import constants, fits, rollouts
from bigmodel_jax.training.early_stopping import Patience
from bigmodel_jax.training.fresh import ADAPTERS, Fresh, fresh_state
from bigmodel_jax.training.state import TrainState, abstract_constants, abstract_state

log = logging.getLogger("bigmodel_jax")


def open_data(config: Config, mesh, data: Any = None) -> tuple[Experience, EvalBatches]:
    """Opens the training and validation batches, and prepares data that is not prepared yet.

    `data` replaces `config.data` where further arrays stand beside its rows.
    """
    data = data or config.data
    layout = {"mesh": mesh, "rules": config.parallel.rules}
    if config.data.prompts:
        return rollouts.open_rollouts(config, mesh)
    batches = config.data.experience(config, mesh)
    if batches is None:
        batches = make_iterator(data, batch_size=config.train.batch_size, seed=config.train.seed, **layout)
    size = config.eval.batch_size or config.train.batch_size
    held_out = config.data.held_out(config, mesh)
    return batches, eval_batches(data, batch_size=size, **layout) if held_out is None else held_out


def resume(
    config: Config, run_dir: Path, mesh, saves: store.Store, batches: Experience, patience: Patience
) -> tuple[TrainState, Tree] | None:
    """The state and constants of the newest intact checkpoint, or None without one.

    `batches` and `patience` are restored to their state at that checkpoint.
    """
    abstract = abstract_state(config, mesh)
    # State and constants must fit into memory together. The check comes before the files are read,
    # because it is cheaper.
    fits.check_state(config, mesh, (abstract, abstract_constants(config, mesh)))
    restored = store.restore(saves, abstract, left=constants.repeated(config))
    if restored is None:
        return None
    batches.seek(restored.step, restored.data_state)
    patience.set_state(restored.data_state)
    return restored.state, constants.load(config, run_dir, mesh)


def begin(config: Config, mesh, console: Console) -> Fresh:
    """The state of a new run, from initial values, `train.init_from` and the objective's sources.

    It prints which parameters came from which run.
    """
    fresh = fresh_state(config, mesh)
    if config.train.init_from:
        new = dict.fromkeys("adapters" if path.startswith(ADAPTERS) else path for path in fresh.missing)
        new = f"; new here: {', '.join(new)}" if new else ""
        rows = "".join(f"; {path}: {n - have} rows more, at the mean of its {have:,}" for path, have, n in fresh.grown)
        at = fresh.state.step
        what = "weights" if config.train.init_state == "weights" else f"weights, optimizer and step ({at:,})"
        _say(console, f"Starting from the {what} of {config.train.init_from}{new}{rows}.")
    for branch, source in config.objective.sources().items():
        _say(console, f"The weights of {branch} are those of {source}.")
    return fresh


def _say(console: Console, text: str) -> None:
    log.info("%s", text)
    console.print(text, soft_wrap=True)


def check_tokenizers(config: Config) -> None:
    """Raises ValueError where a run that the objective reads, such as a teacher, has
    other tokens.
    """
    for branch, source in config.objective.vocabularies().items():
        path, own = kept.split(source)[0] / "tokenizer.json", config.data.open_tokenizer()
        if own is None or not path.is_file():
            continue
        theirs = load_tokenizer(path)
        # Ids beyond the smaller vocabulary are ignored, so one of the two may have more tokens.
        for number in range(min(num_ids(own.model), num_ids(theirs.model))):
            here, there = own.model.id_to_token(number), theirs.model.id_to_token(number)
            if here != there:
                raise ValueError(
                    f"objective.{branch} = {source!r}: the {branch} has another vocabulary: its token {number} is "
                    f"{there!r}, and the data's is {here!r}"
                )


def already_complete(run_dir: Path, config: Config, console: Console) -> dict[str, float]:
    """Prints that the run is complete, and how to train on."""
    console.print(
        f"{mirror.address(run_dir)} is complete: {config.train.steps:,} of {config.train.steps:,} steps are done."
    )
    console.print(f"Report: {mirror.address(_page(run_dir))}. To train on, raise --train.steps.")
    return {}


def already_stopped(run_dir: Path, step: int, patience: Patience, console: Console) -> dict[str, float]:
    """Prints that the run had stopped early, why, and how to train on."""
    console.print(f"{mirror.address(run_dir)} stopped early at step {step:,}: {patience.why()}.", soft_wrap=True)
    text = (
        "To train on, raise --eval.patience, or give 0. eval, generate and export take the best save with --step best."
    )
    console.print(f"Report: {mirror.address(_page(run_dir))}. {text}", soft_wrap=True)
    return {}


def _page(run_dir: Path) -> Path:
    """The report page of an ended run, which is built if it is missing."""
    page = run_dir / "report.html"
    if processes.first() and not page.is_file():  # the process was killed between the last save and the page
        from bigmodel_jax.report.page import build_report

        build_report([run_dir], page)
    return page


def keep_sheet(config: Config, run_dir: Path, rows: Rows) -> None:
    """Saves pictures of the first batch for the report page, if training augments them."""
    size = config.train.batch_size
    sampler = Sampler(rows, size, config.train.seed)
    found = config.data.sheet(lambda: sampler.examples(np.arange(min(sheet.NUM, size))))
    if found is not None:
        sheet.write(run_dir, *found)
