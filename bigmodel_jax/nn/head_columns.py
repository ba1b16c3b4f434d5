"""Selected columns of a head's logits, chosen per token, without the logits in memory.

Shapes: N tokens and C columns of a block of logits, K columns picked per token. Inside a per-device
region, N and C are the device's own.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bigmodel_jax.nn import head as heads
from bigmodel_jax.nn.cross_entropy import MASKED
from bigmodel_jax.nn.head import NOWHERE, Form, Head, Plan


def likeliest(head: Head, num: int, form: Form = "auto", *, columns: int = 0) -> jax.Array:
    """The columns of the `num` largest logits, (..., T, num) int32, the largest first.

    If logits are equal, the first column counts as larger. form, columns: as in head.py's
    `cross_entropy`.
    """
    plan = heads.make_plan(head, columns)
    if not heads.in_blocks(head, plan, form):
        return jax.lax.top_k(head.in_memory(plan.at), num)[1]
    at = plan.at
    return at.by_device(functools.partial(_top, plan, num), heads.specs(at), P(*at.token_spec, None))(*head.arrays)


def _top(plan: Plan, num: int, x, table, bias):
    shape, x = x.shape[:-1], x.reshape(-1, x.shape[-1])
    starts, size = heads.starts(plan, table)

    def best(values, ids):
        values, at = jax.lax.top_k(values, num)
        return values, jnp.take_along_axis(ids, at, axis=1)

    def step(carry, start):
        _, logits, columns, _ = heads.block(plan, x, table, bias, start, size)
        new, at = jax.lax.top_k(jnp.where(columns == NOWHERE, -jnp.inf, logits), min(num, size))
        # The carry stands first, since top_k prefers the earlier of two equal logits.
        return best(*(jnp.concatenate(pair, axis=1) for pair in zip(carry, (new, columns[at]), strict=True))), None

    none = jnp.full((len(x), num), -jnp.inf), jnp.full((len(x), num), NOWHERE)
    (values, ids), _ = jax.lax.scan(step, none, starts)
    if plan.at.vocab:
        values, ids = best(*(jax.lax.all_gather(y, plan.at.vocab, axis=1, tiled=True) for y in (values, ids)))
    return ids.reshape(*shape, num)


def picked(head: Head, ids: jax.Array, form: Form = "auto", *, columns: int = 0) -> tuple[jax.Array, jax.Array]:
    """Returns (logits (..., T, K) of the columns ids, logsumexp (..., T) of all others), float32.

    ids must hold no column twice, and not all columns. Differentiable in x, table and bias.
    """
    plan = heads.make_plan(head, columns)
    if heads.in_blocks(head, plan, form):
        return _picked(plan, *head.arrays, ids)
    logits = head.in_memory(plan.at)
    others = jnp.put_along_axis(logits, ids, MASKED, axis=-1, inplace=False)
    return jnp.take_along_axis(logits, ids, axis=-1), jax.nn.logsumexp(others, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _picked(plan: Plan, x, table, bias, ids):
    return _picked_forward(plan, x, table, bias, ids)[0]


def _picked_forward(plan: Plan, *args):
    tokens, of_ids = plan.at.token_spec, P(*plan.at.token_spec, None)
    found = heads.by_device(plan, _picked_by_device, (*heads.specs(plan.at), of_ids), (of_ids, tokens))(*args)
    return found, (*args, found[1])


def _picked_backward(plan: Plan, saved, cotangents):
    tokens, of_ids, of_head = plan.at.token_spec, P(*plan.at.token_spec, None), heads.specs(plan.at)
    run = heads.by_device(plan, _picked_gradients, (*of_head, of_ids, tokens, of_ids, tokens), of_head)
    return *run(*saved, *cotangents), None


_picked.defvjp(_picked_forward, _picked_backward)


def _places(ids, columns):
    """Where the ids (N, K) stand in the block; C for an id outside it.

    The block's columns (C,) are consecutive.
    """
    shard_first = jnp.max(jnp.where(columns == NOWHERE, NOWHERE, columns - jnp.arange(len(columns))))
    at = ids - shard_first
    inside = (at >= 0) & (at < len(columns))
    at = jnp.where(inside, at, 0)
    return jnp.where(inside & (columns[at] == ids), at, len(columns))


def _put(block, places, values):
    """The block (N, C) with `values` (N, K) at `places` (N, K)."""
    return block.at[jnp.arange(len(block))[:, None], places].set(values, mode="drop")


def _picked_by_device(plan: Plan, x, table, bias, ids):
    shape, x, ids = ids.shape, x.reshape(-1, x.shape[-1]), ids.reshape(-1, ids.shape[-1])
    starts, size = heads.starts(plan, table)

    def step(carry, start):
        # total is the sum of exp(logit - top) so far. It is rescaled where a block has a higher
        # top.
        top, total, found = carry
        _, logits, columns, _ = heads.block(plan, x, table, bias, start, size)
        places = _places(ids, columns)
        found += jnp.take_along_axis(logits, places, axis=1, mode="fill", fill_value=0.0)
        logits = _put(jnp.where(columns == NOWHERE, -jnp.inf, logits), places, -jnp.inf)
        new_top = jnp.maximum(top, logits.max(-1))
        return (new_top, total * jnp.exp(top - new_top) + jnp.exp(logits - new_top[:, None]).sum(-1), found), None

    zeros = jnp.zeros(len(x), jnp.float32)
    (top, total, found), _ = jax.lax.scan(step, (zeros + MASKED, zeros, jnp.zeros(ids.shape, jnp.float32)), starts)
    if plan.at.vocab:
        own, top = top, jax.lax.pmax(top, plan.at.vocab)
        total, found = jax.lax.psum((total * jnp.exp(own - top), found), plan.at.vocab)
    return found.reshape(shape), (jnp.log(total) + top).reshape(shape[:-1])


def _picked_gradients(plan: Plan, x, table, bias, ids, log_rest, d_found, d_rest):
    ids, d_found = (y.reshape(-1, y.shape[-1]) for y in (ids, d_found))
    log_rest, d_rest = log_rest.reshape(-1, 1), d_rest.reshape(-1, 1)

    def slope(logits, columns, _):
        # The slope of logsumexp is the softmax of the other columns. Only the exponentials of
        # picked columns could overflow without the bound, and `_put` replaces these.
        others = jnp.exp(jnp.minimum(logits - log_rest, 0.0)) * d_rest
        return _put(others, _places(ids, columns), d_found)

    return heads.gradients(plan, x, table, bias, slope)
