"""Log-probabilities, entropy and divergences over a vocabulary, without the logits in memory.

The logits are made in blocks of the vocabulary with head.py's blocks and collectives: neither the
forward nor the backward pass holds an array of tokens x vocabulary. A divergence has a gradient in
the student alone.

Shapes: N tokens and C columns of a block of logits. In a per-device region both are the device's
own. p is the student's distribution, q the teacher's.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp

from bigmodel_jax.nn import head as heads
from bigmodel_jax.nn.cross_entropy import MASKED
from bigmodel_jax.nn.head import NOWHERE, Form, Head, Plan
from bigmodel_jax.nn.head_columns import likeliest, picked

Kind = Literal["forward_kl", "reverse_kl", "jsd"]
Rest = Literal["bucket", "renormalised"]
HeadArrays = tuple[jax.Array, jax.Array, jax.Array | None]  # x, table, bias

# -------------------------------------------------------------------------------- log-probabilities


def log_probs(
    head: Head, targets: jax.Array, form: Form = "auto", *, temperature: float = 1.0, columns: int = 0
) -> jax.Array:
    """log p(target) in nats, (..., T) float32, of logits / temperature; targets (..., T) int.

    Differentiable in x, table and bias. form, columns: as in head.py's `cross_entropy`.
    """
    return -heads.cross_entropy(_tempered(head, temperature), targets, form, columns=columns)[0]


def _tempered(head: Head, temperature: float) -> Head:
    return dataclasses.replace(head, temperature=head.temperature * temperature)


# ------------------------------------------------------------------------------------------ entropy


def entropy(head: Head, form: Form = "auto", *, temperature: float = 1.0, columns: int = 0) -> jax.Array:
    """-sum p log p in nats, (..., T) float32, of logits / temperature.

    Differentiable in x, table and bias.
    """
    head = _tempered(head, temperature)
    plan = heads.make_plan(head, columns)
    if heads.in_blocks(head, plan, form):
        return _entropy(plan, *head.arrays)
    log_p = jax.nn.log_softmax(head.in_memory(plan.at))
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _entropy(plan: Plan, x, table, bias):
    return _entropy_forward(plan, x, table, bias)[0]


def _entropy_forward(plan: Plan, *arrays):
    tokens = plan.at.token_spec
    value, log_z = heads.by_device(plan, _entropy_by_device, heads.specs(plan.at), tokens)(*arrays)
    return value, (*arrays, value, log_z)


def _entropy_backward(plan: Plan, saved, d_value):
    of_head, tokens = heads.specs(plan.at), plan.at.token_spec
    return heads.by_device(plan, _entropy_gradients, (*of_head, *(tokens,) * 3), of_head)(*saved, d_value)


_entropy.defvjp(_entropy_forward, _entropy_backward)


def _entropy_by_device(plan: Plan, x, table, bias):
    """Returns (entropy, log Z) in one pass.

    It keeps running sums of exp(logit - top) and of (logit - top) exp(logit - top).
    """
    shape, x = x.shape[:-1], x.reshape(-1, x.shape[-1])
    starts, size = heads.starts(plan, table)

    def moved(total, weighted, by):
        """Both sums, rescaled to a new maximum; by: the old maximum minus the new one."""
        return total * jnp.exp(by), (weighted + total * by) * jnp.exp(by)

    def step(carry, start):
        top, total, weighted = carry
        _, logits, columns, _ = heads.block(plan, x, table, bias, start, size)
        logits = jnp.where(columns == NOWHERE, -jnp.inf, logits)
        new_top = jnp.maximum(top, logits.max(-1))
        total, weighted = moved(total, weighted, top - new_top)
        below = logits - new_top[:, None]
        e = jnp.exp(below)
        # Where e is 0, below may be -inf, and their product would be NaN.
        return (new_top, total + e.sum(-1), weighted + jnp.where(e > 0, e * below, 0.0).sum(-1)), None

    zeros = jnp.zeros(len(x), jnp.float32)
    (top, total, weighted), _ = jax.lax.scan(step, (zeros + MASKED, zeros, zeros), starts)
    if plan.at.vocab:
        own, top = top, jax.lax.pmax(top, plan.at.vocab)
        total, weighted = jax.lax.psum(jnp.stack(moved(total, weighted, own - top)), plan.at.vocab)
    # -sum p log p = log Z - sum p logit. The top drops out of the difference.
    value = jnp.log(total) - weighted / total
    return value.reshape(shape), (jnp.log(total) + top).reshape(shape)


def _entropy_gradients(plan: Plan, x, table, bias, value, log_z, d_value):
    value, log_z, d_value = (y.reshape(-1, 1) for y in (value, log_z, d_value))

    def slope(logits, columns, _):
        log_p = jnp.where(columns == NOWHERE, MASKED, logits - log_z)
        # The derivative of the entropy by a logit is -p (log p + entropy).
        return -jnp.exp(log_p) * (log_p + value) * d_value

    return heads.gradients(plan, x, table, bias, slope)


# --------------------------------------------------------------------------------------- divergence


def divergence(
    student: Head,
    teacher: Head,
    kind: Kind = "forward_kl",
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    top_k: int = 0,
    rest: Rest = "bucket",
    form: Form = "auto",
    columns: int = 0,
) -> jax.Array:
    """The divergence of student and teacher in nats, (..., T) float32. The teacher has no gradient.

    forward_kl: sum q log(q / p). reverse_kl: sum p log(p / q). jsd: beta sum q log(q / m) + (1 -
    beta) sum p log(p / m) with m = beta q + (1 - beta) p (GKD, arXiv:2306.13649, equation 1; TRL's
    `generalized_jsd_loss`, where a beta of 0 or 1 gives the two KL). Both logits are divided by the
    temperature. The value is not multiplied by its square. top_k: use the teacher's `top_k`
    likeliest tokens instead of all. rest: how the other tokens count. They form one bucket in each
    distribution ("bucket"), or both distributions are renormalised without them ("renormalised").
    The tables may differ in width and padding. Raises ValueError for unequal vocabularies.
    """
    student, teacher = _aligned(_tempered(student, temperature), _tempered(teacher, temperature))
    teacher = jax.lax.stop_gradient(teacher)
    beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": beta}[kind]
    plan = heads.make_plan(student, columns)
    if top_k:
        ids = likeliest(teacher, top_k, form, columns=plan.columns)
        of_both = (_picked_log_probs(head, ids, rest, form, plan.columns) for head in (student, teacher))
    elif heads.in_blocks(student, plan, form):
        return _divergence(beta, plan, heads.make_plan(teacher, plan.columns), student.arrays, teacher.arrays)
    else:
        of_both = (jax.nn.log_softmax(head.in_memory(plan.at)) for head in (student, teacher))
    return jnp.sum(_terms(beta, *of_both), axis=-1)


def _aligned(student: Head, teacher: Head) -> tuple[Head, Head]:
    """Returns both heads with tables cut to the same number of rows, so that their blocks match."""
    sizes = [head.vocab or head.table.shape[0] for head in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the teacher has another vocabulary, of {sizes[1]} tokens; the student's has {sizes[0]}")
    rows = max(student.table.shape[0], teacher.table.shape[0])

    def padded(head: Head) -> Head:
        more = rows - head.table.shape[0]
        if not more:
            return head
        x, table, bias = head.arrays
        bias = None if bias is None else jnp.pad(bias, (0, more))
        return dataclasses.replace(head, x=x, table=jnp.pad(table, ((0, more), (0, 0))), bias=bias, vocab=sizes[0])

    return padded(student), padded(teacher)


def _terms(beta: float, log_p, log_q):
    """Each column's term of the divergence."""
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    if beta == 0.0:
        return q * (log_q - log_p)
    if beta == 1.0:
        return p * (log_p - log_q)
    log_m = _mixture(beta, log_p, log_q)
    return beta * q * (log_q - log_m) + (1.0 - beta) * p * (log_p - log_m)


def _slopes(beta: float, log_p, log_q):
    """The terms' derivative by log p, without multiples of p, which log Z's derivative cancels."""
    if beta == 0.0:
        return -jnp.exp(log_q)
    if beta == 1.0:
        return jnp.exp(log_p) * (log_p - log_q)
    return (1.0 - beta) * jnp.exp(log_p) * (log_p - _mixture(beta, log_p, log_q))


def _mixture(beta: float, log_p, log_q):
    # log((1 - beta) p + beta q), without leaving log space, where small p would underflow.
    return jnp.logaddexp(log_p + math.log1p(-beta), log_q + math.log(beta))


def _picked_log_probs(head: Head, ids, rest: Rest, form: Form, columns: int):
    """Returns (..., T, K) for the picked columns; "bucket" adds one column for all others."""
    logits, log_rest = picked(head, ids, form, columns=columns)
    if rest == "bucket":
        logits = jnp.concatenate([logits, log_rest[..., None]], axis=-1)
    return jax.nn.log_softmax(logits)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _divergence(beta: float, plan: Plan, of_teacher: Plan, student: HeadArrays, teacher: HeadArrays):
    return _divergence_forward(beta, plan, of_teacher, student, teacher)[0]


def _divergence_forward(beta, plan, of_teacher, student, teacher):
    fn, tokens = functools.partial(_divergence_by_device, beta, plan, of_teacher), plan.at.token_spec
    run = plan.at.by_device(fn, (heads.specs(plan.at), heads.specs(of_teacher.at)), tokens)
    value, *sums = run(student, teacher)
    return value, (student, teacher, *sums)


def _divergence_backward(beta, plan, of_teacher, saved, d_value):
    fn, tokens = functools.partial(_divergence_gradients, beta, plan, of_teacher), plan.at.token_spec
    of_student = heads.specs(plan.at)
    run = plan.at.by_device(fn, (of_student, heads.specs(of_teacher.at), *(tokens,) * 4), of_student)
    return run(*saved, d_value), None


_divergence.defvjp(_divergence_forward, _divergence_backward)


def _log_p(logits, log_z, columns):
    return jnp.where(columns == NOWHERE, MASKED, logits - log_z)


def _log_q(plan: Plan, arrays: HeadArrays, log_z, start):
    """The teacher's log-probabilities of the block from `start` on."""
    x, table, bias = arrays
    size = heads.starts(plan, table)[1]
    _, logits, columns, _ = heads.block(plan, x.reshape(-1, x.shape[-1]), table, bias, start, size)
    return _log_p(logits, log_z, columns)


def _divergence_by_device(beta, plan: Plan, of_teacher: Plan, student: HeadArrays, teacher: HeadArrays):
    """Returns (divergence, sum of the slopes, the student's log Z, the teacher's), in two passes.

    The first pass computes log Z, the second one the terms.
    """
    x, table, bias = student
    shape, nothing = x.shape[:-1], jnp.zeros(x.shape[:-1], jnp.int32)
    log_z, log_z_teacher = (
        heads.statistics(p, *arrays, nothing)[1].reshape(-1, 1)
        for p, arrays in ((plan, student), (of_teacher, teacher))
    )
    starts, size = heads.starts(plan, table)
    x = x.reshape(-1, x.shape[-1])

    def step(carry, start):
        _, logits, columns, _ = heads.block(plan, x, table, bias, start, size)
        both = _log_p(logits, log_z, columns), _log_q(of_teacher, teacher, log_z_teacher, start)
        return carry + jnp.stack([fn(beta, *both).sum(-1) for fn in (_terms, _slopes)]), None

    sums, _ = jax.lax.scan(step, jnp.zeros((2, len(x)), jnp.float32), starts)
    value, slopes = jax.lax.psum(sums, plan.at.vocab)
    return tuple(y.reshape(shape) for y in (value, slopes, log_z, log_z_teacher))


def _divergence_gradients(beta, plan: Plan, of_teacher: Plan, student, teacher, slopes, log_z, log_z_teacher, d_value):
    slopes, log_z, log_z_teacher, d_value = (y.reshape(-1, 1) for y in (slopes, log_z, log_z_teacher, d_value))

    def slope(logits, columns, start):
        log_p = _log_p(logits, log_z, columns)
        own = _slopes(beta, log_p, _log_q(of_teacher, teacher, log_z_teacher, start))
        # This is the chain rule through log p = logit - log Z. `slopes` is the sum of `own` over
        # the vocabulary.
        return (own - jnp.exp(log_p) * slopes) * d_value

    return heads.gradients(plan, *student, slope)
