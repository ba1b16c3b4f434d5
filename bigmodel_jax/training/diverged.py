"""Ends a run whose steps are no longer finite, and names the first such step and the parameter."""

import logging

import jax
import jax.numpy as jnp

from bigmodel_jax.config import Config
from bigmodel_jax.core import params, precision, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.data.experience import Experience
from bigmodel_jax.training.state import TrainState
from bigmodel_jax.training.step import accumulate

log = logging.getLogger(__name__)


class Diverged(Exception):
    """`train.max_skipped` steps in a row were not finite. The run has ended and is saved."""

    def __init__(self, first: int, num: int, where: str):
        super().__init__(
            f"the run diverged: from step {first:,} on, {num:,} steps in a row were skipped (train.max_skipped); {where}; "
            "a lower optim.lr, a smaller optim.clip or a longer optim.warmup_steps may help, in another --run_dir"
        )


def diverged(
    config: Config, mesh, state: TrainState, batches: Experience, first: int, num: int, constants: params.Tree
) -> Diverged:
    """Logs and returns the error to raise: `num` steps were skipped, beginning at step `first`."""
    # The failed step's batch is made again from its number.
    batches.seek(first - 1)
    error = Diverged(first, num, describe(config, mesh, state, batches.next(state), first, constants))
    log.info("%s", error)  # the terminal shows the error itself
    return error


def describe(
    config: Config, mesh, state: TrainState, batch: dict, step: int, constants: params.Tree | None = None
) -> str:
    """Describes the values of step number `step` that are not finite. `batch` is its batch.

    The weights are still those of that step, because every later step was skipped. The step is
    computed again, which costs a compilation; ordinary steps therefore pay nothing for the search.
    """
    model = config.make_model()

    def flags(state, batch, constants):
        with sharding.use(mesh, config.parallel.rules, config.parallel), precision.use(config.precision):
            # The key is that of the failed step (training/step.py), so dropout and noise repeat.
            rng = jax.random.fold_in(jax.random.key(config.train.seed), step - 1)
            compute, constants = cast((state.params, constants), config.precision.compute)
            grads, mean, _, _ = accumulate(config, model, compute, state.frozen, batch, rng, constants)
        return jax.tree.map(lambda x: jnp.isfinite(x).all(), (state.params, grads, mean.total))

    found = jax.jit(flags, out_shardings=sharding.replicated(mesh))(state, batch, constants or {})
    weights, grads, loss = sharding.to_host(found)
    if bad := [path for path, finite in params.paths(weights).items() if not finite]:
        return f"the parameter {bad[0]} itself is not finite ({len(bad)} of {len(params.paths(weights))} are not)"
    bad = [path for path, finite in params.paths(grads).items() if not finite]
    named = f"the gradient of {bad[0]} ({len(bad)} of {len(params.paths(grads))} are not finite)" if bad else ""
    if not loss:
        return "the loss is not finite" + (f", nor is {named}" if bad else "")
    return f"the loss is finite, but not {named}" if bad else "computed again, that step is finite"
