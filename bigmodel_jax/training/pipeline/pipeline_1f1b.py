"""Gradients of a pipeline-parallel model by the 1F1B schedule, plain or interleaved.

Backward passes begin while microbatches still enter (PipeDream-Flush, arXiv:2006.09503). With
several rounds it is the interleaved schedule (arXiv:2104.04473).

Stages, rounds, waves, homes and rings are those of nn/pipeline.py. Each microbatch has a home
stage, which embeds it and computes its loss. When a wave of n microbatches has passed all layers,
every stage computes the loss of its own microbatch. The cotangents then travel back: they enter at
the last stage, the last microbatch of the wave first. At every tick a stage does one forward and
one backward pass of different microbatches. The first `delay` ticks have only forward passes and
the last ticks only backward passes, so stages idle as long as in GPipe. The number of activations
that wait for a backward pass does not grow with m.

The loss is computed per microbatch, as with `train.microbatches`. Values that a model computes over
its batch, such as the balance of experts, are computed per microbatch as well.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.nn import pipeline
from bigmodel_jax.nn.pipeline import home, of_wave, pin, turn, where
from bigmodel_jax.training import scopes
from bigmodel_jax.training.pipeline import stage_arrays, stage_passes
from bigmodel_jax.training.pipeline.schedule_1f1b import Schedule
from bigmodel_jax.training.pipeline.split_loss import PartedLoss, Split, floats, split
from bigmodel_jax.training.pipeline.stage_passes import Job


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Carry:
    """The values that one tick hands to the next. Dimension 0 is the stage.

    state: (x, shared, fixed), the input of each stage's next forward pass.
    coming: the wave that enters next.
    inbox, outbox: the wave that is entering, and x of the wave that is leaving.
    kept: the residuals of forward passes that wait for their backward passes (n, slots, ...).
    ys: outputs of layers, of two waves (n, 2 n r, l, ...).
    d_state, d_inbox, d_outbox, d_ys: the cotangents, on the way back.
    gone: cotangents of the stack's input, for a wave that has passed back through all layers.
    grads: float32 gradients in three parts: of each layer's own arrays (n, r, l, ...), of the
        arrays that every layer takes whole (n, ...), and of the parameters outside the stack (n,
        ...).
    total: sums of (the loss's mean, metrics, new statistics).
    """

    state: tuple[list, list, list]
    coming: tuple[list, list, list]
    inbox: tuple[list, list, list]
    outbox: list
    kept: Any
    ys: list
    d_state: tuple[list, list]
    d_inbox: list
    d_outbox: tuple[list, list]
    gone: tuple[list, list]
    d_ys: list
    grads: tuple[list, list, Any]
    total: Any


def gradients(loss: PartedLoss, compute: Any, batch: dict, rng: jax.Array) -> tuple:
    """Summed gradients (float32), summed loss, summed metrics, and new statistics.

    The statistics are a mean over microbatches. The auxiliary results of `loss` must be (mean,
    metrics, new statistics).
    """
    mesh, _, parallel = sharding.current()
    n, r = mesh.shape["stage"], parallel.pipeline_rounds
    m = parallel.pipeline_microbatches or n
    with pipeline.inside():
        rows, rngs = jax.tree.map(lambda a: home(a, n, m), (batch, jax.random.split(rng, m)))
        rngs = rngs[:, :, 0]
        parts = split(loss, compute, jax.tree.map(lambda a: a[0, 0], rows), rngs[0, 0])
        layered, closed = _by_stage(parts, n, r, compute)
        job = Job(Schedule(n, m, r), parts, compute, layered, closed, rows, rngs, parallel.pipeline_remat)
        c = _run(job)
        grads = _together(job, c.grads)
    # Each stage has summed over its own microbatches. This adds the stages.
    mean, sums, new = jax.tree.map(lambda a: a.sum(0), c.total)
    return grads, mean, sums, jax.tree.map(lambda a: (a / m).astype(a.dtype), new)


def _run(job: Job) -> Carry:
    """Runs all ticks: forward passes alone, then both, then backward passes alone."""
    s = job.schedule
    period, waves = s.period, s.m // s.n
    forward, backward = functools.partial(_forward, job), functools.partial(_backward, job)
    two = jax.lax.map(functools.partial(_enter, job), jnp.arange(2))
    inbox, coming = (jax.tree.map(operator.itemgetter(i), two) for i in range(2))
    c = dataclasses.replace(_start(job), inbox=inbox, coming=coming)
    c, _ = jax.lax.scan(forward, c, jnp.arange(s.delay))

    def of_wave(c, wave):
        # The loss comes first, because it gives the cotangents that this period's backward passes
        # read.
        c = dataclasses.replace(_loss(job, c, wave), coming=_enter(job, wave + 2))
        c, _ = jax.lax.scan(lambda c, t: backward(forward(c, t)[0], t), c, s.delay + wave * period + jnp.arange(period))
        return _exit(job, c, wave - 1, c.gone), None

    c, _ = jax.lax.scan(of_wave, c, jnp.arange(waves - 1))
    c = _loss(job, c, waves - 1)
    c, _ = jax.lax.scan(backward, c, jnp.arange(s.one_way, s.delay + s.one_way))
    last = jax.tree.map(lambda *pair: jnp.stack(pair), c.gone, c.d_outbox)
    c, _ = jax.lax.scan(lambda c, xs: (_exit(job, c, *xs), None), c, (waves - 2 + jnp.arange(2), last))
    return c


def _by_stage(parts: Split, n: int, r: int, compute: Any) -> tuple[list, list]:
    """The layers' inputs, dealt to the stages (n, r, l, ...), and what every layer takes whole."""
    stacked, xs, closed = parts.weights(compute)
    layered = [pipeline.deal(w, n, r) for w in stacked]
    layered += [w.reshape(r, n, -1, *w.shape[1:]) for w in map(jnp.asarray, xs)]
    return [pin(jnp.swapaxes(w, 0, 1), 0) for w in layered], [jnp.asarray(w) for w in closed]


def _together(job: Job, grads: tuple[list, list, Any]) -> Any:
    """The gradient of every parameter, combined from the three parts of `Carry.grads`."""
    of_layers, of_closed, of_outside = grads
    n, r = job.schedule.n, job.schedule.r
    compute = cast(job.compute, "float32")
    _, pull = jax.vjp(lambda p: tuple(map(floats, _by_stage(job.split, n, r, p))), compute)
    (whole,) = pull((of_layers, [g.sum(0) for g in of_closed]))
    outside = jax.tree.map(lambda g: g.sum(0), of_outside)
    return whole | jax.tree.map(jnp.add, job.split.outside(whole), outside)


# ---------------------------------------------------------------- ticks


def _enter(job: Job, wave: jax.Array) -> tuple[list, list, list]:
    """The layers' input (x, shared, fixed) for each stage's own microbatch of the wave."""
    return jax.tree.map(lambda a: pin(a, 0), _each(job.split.enter)(job.compute, *_of(job, wave)))


def _forward(job: Job, c: Carry, t: jax.Array) -> tuple[Carry, None]:
    """The forward pass of every stage at tick t."""
    s = job.schedule
    new_wave = (t > 0) & (t % s.period == 0)
    inbox = jax.tree.map(functools.partial(jnp.where, new_wave), c.coming, c.inbox)
    # A stage without work computes on clipped indices. `valid` discards its results.
    valid, microbatch, round_ = s.forward(t)
    # Stage 0 reads the inbox while a wave enters. Other stages read their neighbour's output.
    entering = (np.arange(s.n) == 0) & (t % s.period < s.n)
    state = _where(entering, inbox, c.state)
    x, ys, kept = stage_passes.by_all(stage_passes.forward, job, microbatch, round_, state)
    with jax.named_scope(scopes.SAVE_ACTIVATIONS):  # `plan` and profiles recognise the copies by this name
        kept = stage_arrays.put(c.kept, s.slot(microbatch, round_), kept, valid)
    ys = stage_arrays.put(c.ys, s.place_of_two_waves(microbatch, round_), ys, valid)
    outbox = _where(np.arange(s.n) == s.n - 1, x, _turn(c.outbox, -1))
    state = _turn((x, *state[1:]), 1)
    return dataclasses.replace(c, state=state, inbox=_turn(inbox, -1), outbox=outbox, kept=kept, ys=ys), None


def _loss(job: Job, c: Carry, wave: jax.Array) -> Carry:
    """The loss of each microbatch of the wave on the stage that holds its rows, and the cotangents
    with which the backward pass starts there."""
    s = job.schedule

    def one(outside, rows, rng, x, ys):
        def total(outside, x, ys):
            return job.split.leave(job.compute | outside, rows, rng, x, ys)

        (_, aux), grads = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(outside, x, ys)
        return aux, grads

    ys = [stage_arrays.to_homes(y, wave % 2, s.r) for y in c.ys]
    aux, (of_outside, d_x, d_ys) = _each(one)(job.split.outside(job.compute), *_of(job, wave), c.outbox, ys)
    d_ys = [stage_arrays.from_homes(a, d, wave % 2, s.r) for a, d in zip(c.d_ys, d_ys, strict=True)]
    with jax.named_scope(scopes.SUM_GRADIENTS):
        grads = (*c.grads[:2], _add(c.grads[2], of_outside))
    total = jax.tree.map(jnp.add, c.total, aux)
    return dataclasses.replace(c, d_inbox=[pin(d, 0) for d in d_x], d_ys=d_ys, grads=grads, total=total)


def _backward(job: Job, c: Carry, t: jax.Array) -> tuple[Carry, None]:
    """The backward pass of every stage at tick t. After it a wave may be back at the input."""
    s = job.schedule
    valid, microbatch, round_ = s.backward(t)
    entering = (np.arange(s.n) == s.n - 1) & ((t - s.delay) % s.period < s.n)
    d_x, d_shared = _where(entering, (c.d_inbox, _zeros(c.d_state[1])), c.d_state)
    kept = stage_arrays.take(c.kept, s.slot(microbatch, round_))
    d_ys = stage_arrays.take(c.d_ys, s.place_of_two_waves(microbatch, round_))
    found = stage_passes.by_all(stage_passes.backward, job, microbatch, round_, kept, d_x, d_ys)
    of_layers, of_closed, d_x, of_shared = _where(valid, found, _zeros(found))
    with jax.named_scope(scopes.SUM_GRADIENTS):
        grads = (stage_arrays.add_at(c.grads[0], round_, of_layers), _add(c.grads[1], of_closed), c.grads[2])
    state = (d_x, _add(d_shared, of_shared))
    outbox = _where(np.arange(s.n) == 0, state, _turn(c.d_outbox, 1))
    whole = ((t - s.delay) % s.period == s.n - 2) & (t < s.delay + s.m * s.r)
    gone = jax.tree.map(functools.partial(jnp.where, whole), outbox, c.gone)
    state, inbox = _turn(state, -1), _turn(c.d_inbox, 1)
    return dataclasses.replace(c, d_state=state, d_inbox=inbox, d_outbox=outbox, gone=gone, grads=grads), None


def _exit(job: Job, c: Carry, wave: jax.Array, gone: tuple[list, list]) -> Carry:
    """Adds the gradient of what precedes the layers.

    It belongs to each stage's own microbatch of a wave whose cotangents have passed all layers.
    """

    def one(outside, rows, rng, d):
        def enter(outside):
            return job.split.enter(job.compute | outside, rows, rng)[:2]

        return jax.vjp(enter, outside)[1](d)[0]

    of_outside = _each(one)(job.split.outside(job.compute), *_of(job, wave), gone)
    with jax.named_scope(scopes.SUM_GRADIENTS):
        return dataclasses.replace(c, grads=(*c.grads[:2], _add(c.grads[2], of_outside)))


def _each(fn: Callable) -> Callable:
    """`fn(first, ...)` for every stage: `first` is the same for all, the other arguments are per
    stage.
    """

    def run(first, *args):
        return jax.vmap(functools.partial(fn, first), spmd_axis_name="stage")(*args)

    return run


# ---------------------------------------------------------------- arrays


def _start(job: Job) -> Carry:
    """Zeros in the shapes of a `Carry`. Nothing computed from them is kept."""
    s, split = job.schedule, job.split
    rows, rngs = _of(job, 0)
    state = jax.eval_shape(_each(split.enter), job.compute, rows, rngs)
    forward = functools.partial(stage_passes.by_all, stage_passes.forward, job)
    _, ys, kept = jax.eval_shape(forward, jnp.arange(s.n), jnp.arange(s.n), state)
    at_home = [jax.ShapeDtypeStruct((s.n, s.period * y.shape[1], *y.shape[2:]), y.dtype) for y in ys]
    _, total = jax.eval_shape(_each(split.leave), job.compute, rows, rngs, state[0], at_home)
    state, d_state = stage_arrays.zeros(state), stage_arrays.zeros(state[:2])
    of_layers = stage_arrays.zeros(floats(job.layered), dtype=jnp.float32)
    outside = job.split.outside(job.compute)
    of_others = [stage_arrays.zeros(part, (s.n,), dtype=jnp.float32) for part in (floats(job.closed), outside)]
    return Carry(
        state=state,
        coming=state,
        inbox=state,
        outbox=state[0],
        kept=stage_arrays.zeros(kept, slots=s.slots()[1]),
        ys=stage_arrays.zeros(ys, slots=2 * s.period),
        d_state=d_state,
        d_inbox=d_state[0],
        d_outbox=d_state,
        gone=d_state,
        d_ys=stage_arrays.zeros(ys, slots=2 * s.period),
        grads=(of_layers, *of_others),
        total=stage_arrays.zeros(total),
    )


def _of(job: Job, wave: Any) -> tuple[Any, jax.Array]:
    """The rows and random keys of each stage's own microbatch of the wave."""
    wave = jnp.clip(wave, 0, job.schedule.m // job.schedule.n - 1)
    return jax.tree.map(lambda a: of_wave(a, wave), (job.rows, job.rngs))


def _where(of_stage: jax.Array, a: Any, b: Any) -> Any:
    return jax.tree.map(functools.partial(where, of_stage), a, b)


def _turn(tree: Any, by: int) -> Any:
    return jax.tree.map(functools.partial(turn, by=by), tree)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: x + y.astype(x.dtype), a, b)
