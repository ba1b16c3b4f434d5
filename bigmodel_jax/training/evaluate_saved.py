"""Evaluates a checkpoint on the validation split and the evaluation sets: the `eval` verb."""

import dataclasses
from pathlib import Path

import jax

from bigmodel_jax.config import Config
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import sharding
from bigmodel_jax.training.checks import check_data
from bigmodel_jax.training.eval_step import make_eval_step
from bigmodel_jax.training.evaluate import evaluate
from bigmodel_jax.training.saved import chosen, load_weights
from bigmodel_jax.training.set_evaluations import open_sets, validation


def evaluate_run(config: Config, run_dir: Path, which: str = "", adapter: str = "") -> tuple[int, dict[str, float]]:
    """(step, scalars) of one checkpoint on the validation split and all evaluation sets.

    `which` and `adapter` are as in `load_weights`.
    """
    # The run's own tokenizer and scaling are used, also if the data's have changed since.
    config = dataclasses.replace(config, data=config.data.of_run(run_dir))
    validate(config, jax.device_count())
    mesh = sharding.make_mesh(config.parallel)
    chosen(config, adapter)
    check_data(config)  # before the weights are read: the tokenizer or the rows may not fit the model
    batches = validation(config, mesh, run_dir, resumes=True)
    sets = open_sets(config, mesh, run_dir, resumes=True)
    weights, step = load_weights(config, run_dir, mesh, which, adapter=adapter)
    eval_step = make_eval_step(config, mesh)
    scalars = evaluate(config, eval_step, weights, batches)
    for one in sets:
        scalars |= one.evaluate(eval_step, weights)
    return step, scalars
