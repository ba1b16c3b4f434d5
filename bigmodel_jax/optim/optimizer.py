"""`Optimizer`, the interface between a config's optimizer and the train step, and shared parts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bigmodel_jax.core import params

OptState = Any


class Optimizer(NamedTuple):
    """An optimizer as the train step uses it.

    tx: its update takes `grad_norm=`, the global norm by which it clips, and `value=`, the step's
        mean loss.
    rates: (state before, state after) -> {"learning_rate": rate used by this step,
        "learning_rate/<group>": ...}.
    average: (state, parameters, average before) -> the float32 parameters for evaluation; None
        where evaluation uses the trained parameters.
    """

    tx: optax.GradientTransformationExtraArgs
    rates: Callable[[OptState, OptState], dict[str, jax.Array]]
    average: Callable[[OptState, params.Tree, params.Tree], params.Tree] | None = None


def clip(grads: Any, norm: jax.Array, limit: float) -> Any:
    """Gradients scaled so that their global norm, given as `norm`, is at most `limit`; 0 =
    unchanged.
    """
    if not limit:
        return grads
    # The floor of the norm avoids 0 / 0 for gradients that are all zero.
    scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda g: g * scale, grads)


def clipped(tx: optax.GradientTransformation, limit: float) -> optax.GradientTransformationExtraArgs:
    """`tx` applied to clipped gradients.

    The state stays that of `tx`; optax.chain would rename every moment in checkpoints.
    """
    tx = optax.with_extra_args_support(tx)

    def update(grads, state, weights=None, *, grad_norm, **extra):
        return tx.update(clip(grads, grad_norm, limit), state, weights, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def counted(tx: optax.GradientTransformation, spec: params.Tree) -> optax.GradientTransformation:
    """`tx`, extended by a count of its updates where its state has none."""
    if _states(jax.eval_shape(tx.init, params.abstract(spec)), optax.ScaleByScheduleState):
        return tx
    return optax.chain(tx, optax.scale_by_schedule(lambda count: 1.0))


def with_plain_keys(tx: optax.GradientTransformation, spec: params.Tree) -> optax.GradientTransformationExtraArgs:
    """Wraps `tx` so that its state holds random keys as integers, as checkpoints hold no keys."""
    tx, shapes = optax.with_extra_args_support(tx), jax.eval_shape(tx.init, params.abstract(spec))
    if not any(map(_is_key, jax.tree.leaves(shapes))):
        return tx

    def plain(state):
        return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)

    def update(grads, state, weights=None, **extra):
        state = jax.tree.map(lambda s, x: jax.random.wrap_key_data(x) if _is_key(s) else x, shapes, state)
        updates, state = tx.update(grads, state, weights, **extra)
        return updates, plain(state)

    return optax.GradientTransformationExtraArgs(lambda weights: plain(tx.init(weights)), update)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def num_updates(opt_state: OptState) -> jax.Array:
    """The number of updates made, which the schedule takes as its argument."""
    return _states(opt_state, optax.ScaleByScheduleState)[0].count


def plateau_scale(opt_state: OptState) -> jax.Array | float:
    """The current factor of `reduce_on_plateau`; 1 for an optimizer without it."""
    found = _states(opt_state, optax.contrib.ReduceLROnPlateauState)
    return found[0].scale if found else 1.0


def schedule_free_average(opt_state: OptState, weights: params.Tree, before: params.Tree) -> params.Tree:
    """The average x of schedule-free training (arXiv:2405.15682), where `weights` is y."""
    (state,) = _states(opt_state, optax.contrib.ScheduleFreeState)
    return optax.contrib.schedule_free_eval_params(state, weights)


def is_schedule_free(tx: optax.GradientTransformation, spec: params.Tree) -> bool:
    """Whether `tx` is a schedule-free optimizer, which keeps its own average of the weights."""
    return bool(_states(jax.eval_shape(tx.init, params.abstract(spec)), optax.contrib.ScheduleFreeState))


def _states(opt_state: OptState, kind: type) -> list[Any]:
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kind))
    return [x for x in leaves if isinstance(x, kind)]


def state_like(
    tx: optax.GradientTransformation, opt_state: OptState, shapes: params.Tree, values: params.Tree, other: Any
) -> OptState:
    """`opt_state` with parameter-shaped leaves replaced by their parameter's value, others by
    `other`.

    optax finds the parts of the state that belong to parameters, also below the labels of
    `multi_transform`. A moment of another shape (factored, or one number per parameter) becomes
    `other`.
    """

    def one(state, shape, value):  # state of one parameter: an array, several arrays, or a MaskedNode
        return jax.tree.map(lambda x: value if x.shape == shape.shape else other, state)

    return optax.tree_utils.tree_map_params(
        tx,
        one,
        opt_state,
        shapes,
        values,
        transform_non_params=lambda _: other,
        is_leaf=lambda x: not isinstance(x, dict),
    )
