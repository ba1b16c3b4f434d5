"""A run's checkpoint on the validation split: the `eval` verb."""

from pathlib import Path

import jax

from bigmodel_jax.config import Config
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import sharding
from bigmodel_jax.data.loader import EvalBatches, eval_batches
from bigmodel_jax.training import reference
from bigmodel_jax.training.checks import check_data
from bigmodel_jax.training.evaluate import evaluate
from bigmodel_jax.training.held_out import HeldOut
from bigmodel_jax.training.saved import chosen, load_weights
from bigmodel_jax.training.step import make_eval_step


def evaluate_run(config: Config, run_dir: Path, which: str = "", adapter: str = "") -> tuple[int, dict[str, float]]:
    """(step, scalars) of one checkpoint on the validation split; which, adapter: as `load_weights` has them."""
    validate(config, jax.device_count())
    mesh = sharding.make_mesh(config.parallel)
    chosen(config, adapter)
    check_data(config)  # before the weights are read: another tokenizer or longer rows than the model takes
    batches = _validation(config, mesh, run_dir)
    weights, step = load_weights(config, run_dir, mesh, which, adapter=adapter)
    return step, evaluate(config, make_eval_step(config, mesh), weights, batches)


def _validation(config: Config, mesh, run_dir: Path) -> EvalBatches | HeldOut:
    """The batches of the validation split, or the answers to its prompts."""
    if config.data.prompts:
        return HeldOut(config, mesh)
    data = reference.find(config, mesh, run_dir, resumes=True, splits=("validation",)).data
    size = config.eval.batch_size or config.train.batch_size
    return eval_batches(data, batch_size=size, mesh=mesh, rules=config.parallel.rules)
