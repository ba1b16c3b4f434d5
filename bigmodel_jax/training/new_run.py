"""Writes weights made from those of other runs as a new run at step 0."""

import shutil
from pathlib import Path

import jax.numpy as jnp

from bigmodel_jax import config_file
from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import CheckpointConfig, Config
from bigmodel_jax.core import params
from bigmodel_jax.core.precision import cast
from bigmodel_jax.data.tokenizers import special_tokens
from bigmodel_jax.pretrained import labels
from bigmodel_jax.pretrained.transfer import COPY_BYTES, whole_or_nothing
from bigmodel_jax.training import constants
from bigmodel_jax.training.saved import CHAT_TEMPLATE

# Files beside the weights that generation, evaluation and export read.
BELONGINGS = (
    *("tokenizer.json", "vocabulary.json", "scaling.json"),
    *(special_tokens.FILE, labels.KEPT, CHAT_TEMPLATE),
)


def check_free(run_dir: Path) -> None:
    """Raises a one-line ValueError where the folder is not empty, before any other work."""
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise ValueError(f"run_dir = {str(run_dir)!r} exists and is not empty; give another")


def write(config: Config, source: Path, run_dir: Path, weights: params.Tree) -> None:
    """Makes `run_dir` a run of `config` whose checkpoint holds `weights`, its model's parameters.

    The new run takes tokenizer, labels and constants from `source`. Constants that lie in a third
    run stay there. With `optim.ema_decay` the weights also become the average. Raises a one-line
    ValueError, and writes nothing, where `run_dir` is not empty.
    """
    spec = config.make_model().spec
    trained, frozen, fixed = (params.of_kind(weights, spec, kind) for kind in ("trained", "statistic", "constant"))
    state = {"step": jnp.zeros((), jnp.int32), "params": cast(trained, config.precision.param), "frozen": frozen}
    # A run with an average evaluates it, so a new run without one would not load.
    if config.optim.make(spec, config.train.steps or 1).average:
        state["ema"] = cast(trained, "float32")
    with whole_or_nothing(run_dir, "run_dir") as partial:
        constants.keep(partial, config, fixed, constants.references(source))
        with store.open_store(partial / "checkpoints", CheckpointConfig(), copy_bytes=COPY_BYTES) as saves:
            store.save(saves, 0, state, {"next_batch": 0}, config_file.to_json(config))
        config_file.save(config, partial / "config.json")
        for name in BELONGINGS:
            if (source / name).is_file():
                shutil.copyfile(source / name, partial / name)
