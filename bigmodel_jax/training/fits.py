"""Checks as early as possible whether weights, state and compiled step fit in memory."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bigmodel_jax.config import Config
from bigmodel_jax.core import device_memory, params, sharding

CUT = "more {more} with parallel.fsdp (or tensor, stage, expert)"
STATE = f"{CUT}, precision.param = 'bfloat16', an optimizer with fewer moments, a smaller model; launch.py plan says what fits"
WEIGHTS = f"{CUT}, weights in bfloat16, a smaller model"
STEP = (
    "a smaller train.batch_size, more train.microbatches, model.compute.remat where the model has it, more {more} with "
    "parallel.data or parallel.fsdp; launch.py plan says what fits"
)


def check_weights(config: Config, mesh: Mesh, ways: str = STATE, *, copies: bool = True) -> None:
    """Raises ValueError where the weights alone do not fit, from the spec, before anything is
    traced.
    """
    spec = config.make_model().spec
    placed = sharding.placed(spec, mesh, config.parallel)

    def kept(p: params.Param) -> params.Param:
        floating = p.trainable and jnp.issubdtype(p.dtype, jnp.floating)
        return dataclasses.replace(p, dtype=config.precision.param) if floating else p

    what = f"the weights of {_named(config, spec)}"
    device_memory.check(what, params.abstract(params.map_spec(kept, spec), placed), mesh, ways, copies=copies)


def check_state(config: Config, mesh: Mesh, abstract: Any) -> None:
    """Raises ValueError where the train state, given as shapes with shardings, does not fit."""
    spec = config.make_model().spec
    device_memory.check(f"the train state of {_named(config, spec)}", abstract, mesh, STATE)


def compile_step(lowered: Any, mesh: Mesh) -> Any:
    """Compiles the step. Raises ValueError where it does not fit in memory.

    It does not fit if the compiler fails, or if the compiler reports more memory than the device
    has.
    """
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        # XLA has no class of its own for this error, so its text tells it apart.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(
            f"the step does not fit in memory ({str(error).splitlines()[0][:300]}): {STEP.format(more='devices')}"
        ) from None
    # Donated outputs live in the arguments' memory, so the peak is arguments plus temporaries.
    usage = compiled.memory_analysis()
    device_memory.check_step(usage.argument_size_in_bytes, usage.temp_size_in_bytes, mesh, STEP)
    return compiled


def _named(config: Config, spec: params.Tree) -> str:
    return f"{type(config.model).__name__} ({params.count(spec):,} parameters)"
