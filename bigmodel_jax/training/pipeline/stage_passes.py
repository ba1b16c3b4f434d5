"""The work of a pipeline stage in one tick: a forward pass and a backward pass of its layers."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from bigmodel_jax.nn.pipeline import own_keys
from bigmodel_jax.training.pipeline.schedule_1f1b import Schedule
from bigmodel_jax.training.pipeline.split_loss import Split, floats, put_floats


@dataclasses.dataclass(frozen=True)
class Job:
    """The values that are the same at every tick.

    `rows` (n, k, b, ...) and `rngs` (n, k), their random keys, are indexed by home stage and wave.
    """

    schedule: Schedule
    split: Split
    compute: Any
    layered: list
    closed: list
    rows: Any
    rngs: jax.Array
    remat: bool


def _of_round(job: Job, microbatch: jax.Array, round_: jax.Array, layered: list) -> list:
    return [own_keys(w[0] if job.schedule.r == 1 else w[round_], microbatch) for w in layered]


def _vjp(
    job: Job, layered: list, closed: list, x: list, shared: list, fixed: list
) -> tuple[tuple[list, list], Callable]:
    """Outputs of a stage's layers, and the function that pulls their cotangents back."""

    def layers(layered_floats, closed_floats, x, shared):
        return job.split.layers(
            put_floats(layered, layered_floats), put_floats(closed, closed_floats), x, shared, fixed
        )

    # Weights are not saved with the activations: the backward pass gets them as arguments.
    saved = {"saveable_args": (False, False, True, True)}
    return jax.vjp(layers, floats(layered), floats(closed), x, shared, **saved)


def forward(job: Job, microbatch, round_, layered, closed, state) -> tuple[list, list, Any]:
    """A stage's forward pass: x, ys, and the residuals for the backward pass, without weights."""
    layered = _of_round(job, microbatch, round_, layered)
    if job.remat:
        return *job.split.layers(layered, closed, *state), state
    (out, ys), pull = _vjp(job, layered, closed, *state)
    return out, ys, pull


def backward(job: Job, microbatch, round_, layered, closed, kept, d_x, d_ys) -> tuple[list, list, list, list]:
    """A stage's backward pass: cotangents of weights, of `closed`, of x and of `shared`."""
    layered = _of_round(job, microbatch, round_, layered)
    pull = _vjp(job, layered, closed, *kept)[1] if job.remat else kept
    # The residuals have gaps in place of the weights (`saveable_args`), which are filled here.
    pull.args_res[:2] = floats(layered), floats(closed)
    return pull((d_x, d_ys))


def by_all(fn: Callable, job: Job, microbatch, round_, *rest) -> tuple:
    """Runs `forward` or `backward` for every stage on its own arguments."""
    axes = (0, 0, 0, None, *[0] * len(rest))
    run = jax.vmap(functools.partial(fn, job), in_axes=axes, spmd_axis_name="stage")
    return run(microbatch, round_, job.layered, job.closed, *rest)
