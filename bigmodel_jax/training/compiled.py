"""The compiled programs of a run's steps.

All processes compile before the first step, because none may run a program while another compiles.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from bigmodel_jax.checkpoint.digest import batch_digest
from bigmodel_jax.config import Config
from bigmodel_jax.core import params, sharding
from bigmodel_jax.training import fits
from bigmodel_jax.training.state import TrainState
from bigmodel_jax.training.step import make_train_step


class Programs(NamedTuple):
    """The programs of a run.

    step: the train step.
    watched: the train step that also makes the measurements of `report.watch`; without that option,
        `step` itself.
    digest: computes the digest of a batch.
    memory: bytes that a step needs on one device; None where the strategy cannot tell.
    """

    step: Callable
    watched: Callable
    digest: Callable
    memory: int | None


def compile_programs(
    config: Config,
    mesh: Any,
    state: TrainState,
    batch: dict,
    constants: params.Tree,
    numbers: dict[str, Any] | None = None,
) -> Programs:
    """Compiles the programs. Raises ValueError where one does not fit in memory.

    `numbers` maps config fields to values that the steps take as an additional argument
    (shared_programs.py); None for no such argument.
    """
    digest = jax.jit(batch_digest, out_shardings=sharding.replicated(mesh)).lower(batch).compile()
    traced, more = tuple(numbers or ()), (numbers,) if numbers else ()
    steps = [make_train_step(config, mesh, traced)]
    if config.report.watch:
        steps.append(make_train_step(config, mesh, traced, watched=True))
    # A pmap step has no `lower`, so it compiles at its first call.
    if not all(hasattr(step, "lower") for step in steps):
        return Programs(steps[0], steps[-1], digest, None)
    steps = [fits.compile_step(step.lower(state, batch, constants, *more), mesh) for step in steps]
    usage = [step.memory_analysis() for step in steps]
    # The sum is in bytes. Outputs do not count: the state is donated, so they reuse the arguments'
    # memory.
    memory = max(u.argument_size_in_bytes + u.temp_size_in_bytes for u in usage)
    return Programs(steps[0], steps[-1], digest, memory)
