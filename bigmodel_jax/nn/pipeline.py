"""Pipeline parallelism over the `stage` axis: GPipe and, with several rounds, interleaved stages.

GPipe: arXiv:1811.06965. The interleaved schedule (arXiv:2104.04473) is also called circular. In the
1F1B schedule (training/pipeline), the loss is inside the pipeline.

All stages compute at once, each its own layers on its own microbatch: the program has a leading
dimension that is sharded over `stage`. After every tick a microbatch moves to the next stage, and
from the last stage to the first for its next round. Microbatches enter in waves of n. A wave
completes all its rounds before the next one enters, so that no microbatch waits. A stage idles in
n - 1 ticks, which is a share of (n - 1) / (m r + n - 1).

Shapes: n stages, r rounds, l layers of a stage in one round, m microbatches, k = m / n waves, b
rows of a microbatch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import sharding

OF_ROUND = "weights of the round"


def active() -> bool:
    """Whether the step being traced is for a mesh of several stages."""
    mesh, _, parallel = sharding.current()
    return parallel is not None and parallel.stage != 1 and mesh.shape["stage"] > 1


def ticks(stages: int, microbatches: int, rounds: int) -> int:
    """The number of ticks of one pass through the pipeline."""
    return microbatches * rounds + stages - 1


def run(
    layers: Callable, stacked: Any, x: Any, xs: Any, shared: tuple, kept: Callable | None = None
) -> tuple[Any, Any]:
    """Runs `layers(stacked, x, xs, shared=...) -> (x, ys)`, a scan over layers, in stages.

    The arguments and results are those of the scan. kept: the remat policy of `layers`; None keeps
    everything. Dimension 0 of every leaf of x and `shared` is the batch, and a microbatch takes its
    rows of each. ys are sums over rows, and those of the microbatches are added. Random keys in xs
    differ by microbatch.
    """
    mesh, _, parallel = sharding.current()
    n, r = mesh.shape["stage"], parallel.pipeline_rounds
    m = parallel.pipeline_microbatches or n
    stacked = jax.tree.map(lambda w: pin(deal(w, n, r), 1), stacked)
    xs = jax.tree.map(lambda w: pin(w.reshape(r, n, -1, *w.shape[1:]), 1), xs)
    x_leaves, x_tree = jax.tree.flatten(x)
    shared_leaves, shared_tree = jax.tree.flatten(shared)
    once, places = shared_once(shared_leaves)
    distinct = [shared_leaves[i] for i in once]

    def stage(number, weights, xs, x, travelling):
        """One stage in one tick; number: (microbatch, its round)."""
        microbatch, round_ = number
        of_round = jax.tree.map(lambda w: w[0] if r == 1 else w[round_], (weights, xs))
        weights, xs = checkpoint_name(of_round[0], OF_ROUND), own_keys(of_round[1], microbatch)
        shared = jax.tree.unflatten(shared_tree, [travelling[i] for i in places])
        out, ys = layers(weights, jax.tree.unflatten(x_tree, x), xs, shared=shared)
        return jax.tree.leaves(out), ys

    if parallel.pipeline_remat:
        stage = jax.checkpoint(stage, prevent_cse=False)
    elif r > 1:  # without this policy, every tick would keep a copy of its round's weights
        kept = kept or jax.checkpoint_policies.save_anything_except_these_names(OF_ROUND)
        stage = jax.checkpoint(stage, prevent_cse=False, policy=kept)
    stages = jax.vmap(stage, in_axes=(0, 1, 1, 0, 0), spmd_axis_name="stage")
    with inside():
        compute = lambda number, x, travelling: stages(number, stacked, xs, x, travelling)  # noqa: E731
        at_home = [[home(a, n, m) for a in leaves] for leaves in (x_leaves, distinct)]
        x_leaves, ys = _schedule(compute, *at_home, n, m, r)
    ys = jax.tree.map(lambda y: y.reshape(-1, *y.shape[3:]), ys)
    return jax.tree.unflatten(x_tree, [_away(a) for a in x_leaves]), ys


def shared_once(leaves: list) -> tuple[list[int], list[int]]:
    """Returns (indices of distinct leaves, each leaf's place among them).

    An array that is shared twice travels once.
    """
    once = [i for i, leaf in enumerate(leaves) if not any(leaf is earlier for earlier in leaves[:i])]
    return once, [next(k for k, i in enumerate(once) if leaves[i] is leaf) for leaf in leaves]


# ----------------------------------------------------------------------------------------- schedule


def _schedule(compute: Callable, x: list, shared: list, n: int, m: int, r: int) -> tuple[list, Any]:
    """Runs all ticks: returns (x after the last layer (n, k, b, ...), ys (r, n, l, ...)).

    x, shared: (n, k, b, ...). Microbatch i is stored at stage i % n as its entry i // n. A wave is
    copied into `inbox`, which rotates towards the first stage. The last stage's outputs rotate in
    `outbox` until the whole wave is back where it is stored.
    """
    period, stage, leaves = n * r, jnp.arange(n), x + shared

    def tick(carry, t):
        state, inbox, out, outbox, ys = carry
        first = t % period  # the first stage's progress in its wave
        wave = jnp.minimum(t // period, m // n - 1)
        inbox = [jnp.where(first == 0, of_wave(a, wave), b) for a, b in zip(leaves, inbox, strict=True)]
        entering = (stage == 0) & (first < n)
        state = [where(entering, a, b) for a, b in zip(inbox, state, strict=True)]
        # Each stage's index in the order of all (wave, round, microbatch).
        place = t - stage
        valid = (place >= 0) & (place < m * r)
        place = jnp.clip(place, 0, m * r - 1)
        round_ = place % period // n
        done, new_ys = compute((place // period * n + place % n, round_), state[: len(x)], state[len(x) :])
        at_round = (jnp.arange(r)[:, None] == round_) & valid
        ys = jax.tree.map(lambda a, y: a + where(at_round, y[None], jnp.zeros_like(y[None])), ys, new_ys)
        outbox = [where(stage == n - 1, a, b) for a, b in zip(done, outbox, strict=True)]
        # Every tick overwrites the wave's entry, so that the last tick's value stays.
        out = [
            jax.lax.dynamic_update_index_in_dim(a, b, place[-1] // period, 1) for a, b in zip(out, outbox, strict=True)
        ]
        state = [turn(a, 1) for a in [*done, *state[len(x) :]]]
        return (state, [turn(a, -1) for a in inbox], out, [turn(a, -1) for a in outbox], ys), None

    # Waiting stages compute on rows of the batch instead of zeros, so that their results are
    # finite. These results are discarded.
    waiting = [of_wave(a, 0) for a in leaves]
    _, of_tick = jax.eval_shape(compute, (stage, stage), waiting[: len(x)], waiting[len(x) :])
    ys = jax.tree.map(lambda y: pin(jnp.zeros((r, *y.shape), y.dtype), 1), of_tick)
    carry = (waiting, waiting, x, waiting[: len(x)], ys)
    (_, _, out, _, ys), _ = jax.lax.scan(tick, carry, jnp.arange(ticks(n, m, r)))
    return out, ys


def of_wave(a: jax.Array, wave: jax.Array | int) -> jax.Array:
    """The entries (n, b, ...) of one wave of a (n, k, b, ...)."""
    return jax.lax.dynamic_index_in_dim(a, wave, 1, keepdims=False)


def where(of_stage: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """`jnp.where` with a condition (n,), one per stage, broadcast over other dimensions."""
    return jnp.where(of_stage.reshape(*of_stage.shape, *[1] * (b.ndim - of_stage.ndim)), a, b)


def turn(a: jax.Array, by: int) -> jax.Array:
    """Moves every stage's piece `by` stages further, cyclically, by one collective-permute."""
    n = len(a)
    pairs = [(i, (i + by) % n) for i in range(n)]
    return by_stage(functools.partial(jax.lax.ppermute, axis_name="stage", perm=pairs), P("stage"), P("stage"))(a)


def by_stage(fn: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """`fn` on each stage's own pieces; the compiler partitions the other axes."""
    specs = {"in_specs": in_specs, "out_specs": out_specs}
    return jax.shard_map(fn, mesh=sharding.current_mesh(), axis_names={"stage"}, check_vma=False, **specs)


def own_keys(xs: Any, microbatch: jax.Array) -> Any:
    """Random keys (l,) folded with the microbatch's number; all other leaves unchanged."""

    def own(leaf):
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return jax.vmap(jax.random.fold_in, (0, None))(leaf, microbatch)

    return jax.tree.map(own, xs)


# ------------------------------------------------------------------------------------------- layout


def inside():
    """A context in which rows of a microbatch are sharded over the axes other than `stage`.

    Inside it, no second pipeline starts.
    """
    mesh, rules, parallel = sharding.current()
    batch = tuple(axis for axis in sharding.axis_names(rules.batch) if axis != "stage")
    rules = dataclasses.replace(rules, batch=batch)
    return sharding.use(mesh, rules, dataclasses.replace(parallel, stage=1))


def pin(a: jax.Array, dim: int, *more: Any) -> jax.Array:
    """Shards dimension `dim` over the stages, and the next ones as `more` says. The others are
    free.
    """
    free = P.UNCONSTRAINED
    return sharding.pin(a, P(*[free] * dim, "stage", *more, *[free] * (a.ndim - dim - 1 - len(more))))


def home(a: jax.Array, n: int, m: int) -> jax.Array:
    """Maps (B, ...) -> (n, k, b, ...). Each device keeps the rows that it holds."""
    a = a.reshape(n, a.shape[0] // m, m // n, *a.shape[1:])
    return pin(jnp.moveaxis(a, 2, 1), 0, None, sharding.fitting_spec(a.shape[1:2], "batch")[0])


def _away(a: jax.Array) -> jax.Array:
    a = jnp.moveaxis(a, 1, 2)
    return a.reshape(-1, *a.shape[3:])


def deal(w: jax.Array, n: int, r: int) -> jax.Array:
    """Maps layers (L, ...) -> (r, n, l, ...): round j of stage s has group j n + s.

    The layers are stored in order over the stages, which lets a run continue with other numbers of
    stages and rounds. With several rounds the groups are exchanged once a step. A stage sends at
    most its own shard of the weights.
    """
    w = w.reshape(n, r, -1, *w.shape[1:])
    if r == 1:
        return jnp.swapaxes(w, 0, 1)

    def here(w, number):
        out = jnp.zeros_like(w[0])
        for pairs, slots, new_slots in moves(n, r):
            piece = w[0, jnp.asarray(slots)[number[0]]]
            if any(a != b for a, b in pairs):
                piece = jax.lax.ppermute(piece, "stage", pairs)
            out = out.at[jnp.asarray(new_slots)[number[0]]].set(piece, mode="drop")
        return out[:, None]

    return by_stage(here, (P("stage"), P("stage")), P(None, "stage"))(pin(w, 0), jnp.arange(n))


def moves(n: int, r: int) -> list[tuple[list[tuple[int, int]], np.ndarray, np.ndarray]]:
    """The exchanges that `deal` needs: (from, to) pairs, and each stage's slots sent and filled.

    A filled slot of r means that the stage receives nothing.
    """
    out = []
    for distance in range(n):
        of_stage = [[k for k in range(r) if (s * r + k) % n == (s + distance) % n] for s in range(n)]
        for i in range(max(map(len, of_stage))):
            sends = {s: ks[i] for s, ks in enumerate(of_stage) if i < len(ks)}
            pairs = [(s, (s + distance) % n) for s in sends]
            slots, new_slots = np.zeros(n, np.int32), np.full(n, r, np.int32)
            for s, to in pairs:
                slots[s], new_slots[to] = sends[s], (s * r + sends[s]) // n
            out.append((pairs, slots, new_slots))
    return out
