"""Sparse weights in training: zeros that stay zero, and gradual pruning (arXiv:1710.01878)."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, Tree
from bigmodel_jax.core.ranges import Count, Share, ShareBelowOne
from bigmodel_jax.core.spelling import closest

STACKS = ("layers", "experts")  # along these dimensions a weight stacks several matrices


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """Which weights of a run are zero.

    `keep` fine-tunes a pruned run: weights that are zero at the start stay zero. `sparsity` prunes
    while the run trains: the share of the smallest weights of each matrix that become zero rises as
    s (1 - (1 - x)^3), where x goes from 0 to 1 between `begin` and `end` (Zhu & Gupta,
    arXiv:1710.01878, section 3).
    """

    keep: bool = False  # weights that are exactly zero stay zero through every update
    sparsity: ShareBelowOne = 0.0  # share of each matrix that is zero from `end` on; 0 = no pruning
    begin: Share = 0.0  # pruning begins after this share of the steps
    end: Share = 0.5  # `sparsity` is reached after this share of the steps
    every: Count = 10  # number of updates between two prunings
    targets: str = ""  # regular expression over whole paths; "" = all trained matrices without a vocabulary axis

    @property
    def on(self) -> bool:
        """Whether any weights are kept at zero or pruned."""
        return self.keep or self.sparsity > 0


def targets(pattern: str, spec: Tree, option: str = "optim.prune.targets") -> dict[str, Param]:
    """The trained matrices that are pruned, by path.

    Raises a one-line ValueError for a pattern that matches none.
    """
    flat = {path: p for path, p in params.paths(spec).items() if p.kind == "trained" and is_matrix(p)}
    if not pattern:
        return {path: p for path, p in flat.items() if "vocab" not in p.axes}
    try:
        found = {path: p for path, p in flat.items() if re.fullmatch(pattern, path)}
    except re.error as error:
        raise ValueError(f"{option} = {pattern!r} is not a regular expression: {error}") from None
    if not found:
        near = ", ".join(closest(pattern, list(flat), 3))
        raise ValueError(f"{option} = {pattern!r} matches no trained matrix's whole path; the nearest: {near}")
    return found


def is_matrix(p: Param) -> bool:
    """Whether a parameter decays and has at least two dimensions beside those that stack
    matrices.
    """
    return bool(p.decay) and len(p.shape) - stacked(p) >= 2


def stacked(p: Param) -> int:
    """The number of leading dimensions that stack matrices."""
    return next((n for n, axis in enumerate(p.axes) if axis not in STACKS), len(p.axes))


def pruned(tx: optax.GradientTransformation, cfg: PruneConfig, spec: Tree, total_steps: int) -> Any:
    """`tx` with updates that leave the targets' zeros zero and add zeros by the schedule."""
    if not cfg.on:
        return tx
    found, tx = targets(cfg.targets, spec), optax.with_extra_args_support(tx)
    return _gradual(tx, cfg, found, total_steps) if cfg.sparsity else _keeping(tx, found)


def with_zeros(average: Any, cfg: PruneConfig, spec: Tree) -> Any:
    """The average of the parameters, set to zero where a pruned weight is zero.

    Without this the average would still contain the weight's earlier values.
    """
    if average is None or not cfg.on:
        return average
    found = targets(cfg.targets, spec)

    def masked(state, new, before):
        flat, zeros = params.paths(average(state, new, before)), params.paths(new)
        return params.from_paths({p: jnp.where(zeros[p] == 0, 0, x) if p in found else x for p, x in flat.items()})

    return masked


def _keeping(tx, found: dict[str, Param]) -> optax.GradientTransformationExtraArgs:
    def update(grads, state, weights=None, **extra):
        updates, state = tx.update(grads, state, weights, **extra)
        return _kept(updates, weights, found), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _kept(updates: Tree, weights: Tree, found: dict[str, Param]) -> Tree:
    flat, now = params.paths(updates), params.paths(weights)
    return params.from_paths({p: jnp.where(now[p] == 0, 0, u) if p in found else u for p, u in flat.items()})


def sparsity_at(cfg: PruneConfig, count: Any, total_steps: int) -> Any:
    """The share of zeros after update number `count`, which counts from 0."""
    first, last = _span(cfg, total_steps)
    x = jnp.clip((count - first) / max(last - first, 1), 0.0, 1.0)
    return cfg.sparsity * (1.0 - (1.0 - x) ** 3)


def _span(cfg: PruneConfig, total_steps: int) -> tuple[int, int]:
    """The numbers of the first and the last pruning update, counted from 0 to total_steps - 1."""
    last = min(round(cfg.end * total_steps), total_steps - 1)
    return min(round(cfg.begin * total_steps), last), last


def _gradual(tx, cfg: PruneConfig, found: dict[str, Param], total_steps: int) -> optax.GradientTransformationExtraArgs:
    first, last = _span(cfg, total_steps)

    def init(weights):
        return tx.init(weights), optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))

    def update(grads, state, weights=None, **extra):
        inner, counted = state
        updates, inner = tx.update(grads, inner, weights, **extra)
        updates, count = _kept(updates, weights, found), counted.count
        due = (count >= first) & (count <= last) & (((count - first) % cfg.every == 0) | (count == last))
        share = sparsity_at(cfg, count, total_steps)

        def prune(updates):
            flat, now = params.paths(updates), params.paths(weights)
            return params.from_paths(
                {p: _smallest_out(flat[p], now[p], found[p], share) if p in found else flat[p] for p in flat}
            )

        # The branch avoids the sort of all weights on the other steps.
        updates = jax.lax.cond(due, prune, lambda updates: updates, updates)
        return updates, (inner, optax.ScaleByScheduleState(optax.safe_increment(count)))

    return optax.GradientTransformationExtraArgs(init, update)


def _smallest_out(update: jax.Array, weight: jax.Array, p: Param, share: jax.Array) -> jax.Array:
    """Changes an update so that the smallest `share` of each matrix becomes exactly zero."""
    lead = p.shape[: stacked(p)]
    sizes = jnp.abs(weight + update).reshape(*lead, -1)
    k = jnp.floor(share * sizes.shape[-1] + 0.5).astype(jnp.int32)
    # The inverse of the sorting permutation gives the rank of each weight by size.
    order = jnp.argsort(sizes, axis=-1)
    places = jnp.broadcast_to(jnp.arange(sizes.shape[-1]), sizes.shape)
    ranks = jnp.put_along_axis(jnp.zeros_like(places), order, places, axis=-1, inplace=False).reshape(p.shape)
    # Adding -weight to the weight makes it exactly zero.
    return jnp.where(ranks < k, -weight, update).astype(update.dtype)
