"""The head of a language model, and its cross-entropy without the logits in memory.

Over a large vocabulary the logits are the largest array of a step: 2.1 GB in float32 for 4,096 tokens of Llama 3. Here they
are made block by block of the vocabulary, once to find log Z and once more for the gradients; the same mathematics, one
product with the table more. The collectives are written out, since the compiler's own choice under FSDP is to hold the
table's whole gradient on every device and to all-reduce it: a block of rows is gathered when it is used, and its gradient
summed and cut again (reduce-scattered) before the next block's is made.

After Rabe & Staats, arXiv:2112.05682 (the running softmax) and Wijmans et al., arXiv:2411.09009 (over the vocabulary).

Shapes: N tokens, D embed, V vocab, C columns of a block of logits; inside a region by device all are a device's own.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import storage
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.nn import linear, rings
from bigmodel_jax.nn.cross_entropy import cross_entropy as of_logits
from bigmodel_jax.nn.lora import Adapted
from bigmodel_jax.nn.table import Cut, cut

Form = Literal["auto", "whole", "blocks"]

# What a block of logits may take on a device, and the columns it has at least: a product with fewer wastes its reads.
BLOCK_BYTES = 2**27
LEAST_COLUMNS = 2048
MASKED = -1e30  # the logit of a row that is no token: finite, so that a difference of two of them is 0 and not NaN
NOWHERE = jnp.iinfo(jnp.int32).min  # the number of a column that an earlier block had, or that is no token


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """Logits that are not computed yet: x (..., T, D) against the rows of table (V, D), plus bias (V,), then
    softcap tanh(logits / softcap) where softcap is not 0 (Gemma 2, arXiv:2408.00118), divided by temperature.

    vocab: so many first rows are tokens; what lies behind them fills up the mesh and has no logits. 0 = all are. table may
    have adapters (lora.py), of whose frozen table no gradient is computed, or be stored in blocks (core/storage.py)."""

    x: jax.Array
    table: jax.Array | Adapted
    bias: jax.Array | None = None
    softcap: float = dataclasses.field(default=0.0, metadata={"static": True})
    vocab: int = dataclasses.field(default=0, metadata={"static": True})
    temperature: float = dataclasses.field(default=1.0, metadata={"static": True})

    @property
    def padded(self) -> bool:
        return 0 < self.vocab < self.table.shape[0]

    @property
    def arrays(self) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """x and table as blocks read them: what adapters add stands in further columns of both."""
        if not isinstance(self.table, Adapted):
            return self.x, storage.dense(self.table, self.x.dtype), self.bias
        if cut(self.x.shape[:-1], self.table.shape).embed or not self.table.has_columns:
            return self.x, self.table.dense(self.x.dtype), self.bias  # a device has a part of the columns of a row
        x, table, z, columns = self.table.columns(self.x)
        return jnp.concatenate([x, z], axis=-1), jnp.concatenate([table, columns], axis=-1), self.bias

    def frozen_columns(self, at: Cut) -> int:
        """How many first columns of the table in `arrays` have no gradient."""
        table = self.table
        if not isinstance(table, Adapted) or not table.is_frozen:
            return 0
        extended = table.has_columns and not at.embed
        return table.shape[1] if extended or not table.low else 0

    def logits(self) -> jax.Array:
        """(..., T, vocab) float32."""
        logits = self._of_all_rows()
        return logits[..., : self.vocab] if self.padded else logits

    def masked_logits(self) -> jax.Array:
        """(..., T, V) float32, which a mesh divides: rows that are no tokens have no probability and no gradient."""
        logits = self._of_all_rows()
        return jnp.where(jnp.arange(logits.shape[-1]) < self.vocab, logits, MASKED)

    def in_memory(self, at: Cut) -> jax.Array:
        """(..., T, V or vocab) float32: columns that are no tokens have no probability, where there are any."""
        return self.masked_logits() if self.padded and at.vocab else self.logits()

    def _of_all_rows(self) -> jax.Array:
        logits = linear.unembed({"table": self.table}, self.x)
        logits = _finish(logits, self.bias, self.softcap, self.temperature)
        return constrain(logits, *(None,) * (logits.ndim - 3), "batch", "seq", "vocab")


def _finish(logits, bias, softcap, temperature):
    logits = logits if bias is None else logits + bias.astype(jnp.float32)
    logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
    return logits if temperature == 1.0 else logits / temperature


# ------------------------------------------------------------------------------------------------ blocks


class Plan(NamedTuple):
    """How a device makes its logits: columns are those of a block; vocab: how many of all rows are tokens, 0 = all;
    frozen: how many first columns of the table have no gradient."""

    at: Cut
    columns: int
    softcap: float
    vocab: int
    temperature: float
    frozen: int = 0


def make_plan(head: Head, columns: int = 0) -> Plan:
    """columns: of a block on a device; 0 = as many as BLOCK_BYTES hold."""
    at = cut(head.x.shape[:-1], head.table.shape)
    columns = columns or _columns(*local_shape(head, at))
    vocab = head.vocab if head.padded else 0
    return Plan(at, columns, head.softcap, vocab, head.temperature, head.frozen_columns(at))


def local_shape(head: Head, at: Cut) -> tuple[int, int]:
    """Tokens and columns of a device's logits."""
    return math.prod(head.x.shape[:-1]) // at.size(at.tokens), head.table.shape[0] // at.size(at.vocab)


def _columns(num_tokens: int, vocab: int) -> int:
    most = max(BLOCK_BYTES // (4 * num_tokens), LEAST_COLUMNS)
    even = math.ceil(vocab / math.ceil(vocab / most))
    return math.ceil(even / 128) * 128  # a register's width on TPU


def is_large(head: Head, plan: Plan) -> bool:
    """Whether a device's logits are more than two blocks: from there on blocks are worth their third product."""
    return 4 * math.prod(local_shape(head, plan.at)) > 2 * BLOCK_BYTES


def in_blocks(head: Head, plan: Plan, form: Form) -> bool:
    return form == "blocks" or (form == "auto" and is_large(head, plan))


# ------------------------------------------------------------------------------------------------ cross-entropy


def cross_entropy(
    head: Head, targets: jax.Array, form: Form = "auto", *, columns: int = 0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(-log p(target), log Z) in nats and the likeliest column, each (..., T); targets (..., T) int.

    Differentiable in x, table and bias. form: the logits in memory ("whole"), in blocks, or ("auto") in blocks where a
    device's logits are more than two of them. columns: of a block on a device; 0 = as many as BLOCK_BYTES hold.
    """
    plan = make_plan(head, columns)
    if not in_blocks(head, plan, form):
        logits = head.in_memory(plan.at)
        return *of_logits(logits, targets), jnp.argmax(logits, axis=-1).astype(targets.dtype)
    return _cross_entropy(plan, *head.arrays, targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(plan: Plan, x, table, bias, targets):
    return _forward(plan, x, table, bias, targets)[0]


def _forward(plan: Plan, x, table, bias, targets):
    tokens = plan.at.token_spec
    run = by_device(plan, statistics, (*specs(plan.at), tokens), tokens)
    nats, log_z, best = run(x, table, bias, targets)
    return (nats, log_z, best), (x, table, bias, targets, log_z)


def _backward(plan: Plan, saved, cotangents):
    of_head, tokens = specs(plan.at), plan.at.token_spec
    run = by_device(plan, _gradients, (*of_head, *(tokens,) * 4), of_head)
    return *run(*saved, *cotangents[:2]), None


_cross_entropy.defvjp(_forward, _backward)


def specs(at: Cut) -> tuple[P, P, P]:
    """Of x, table and bias."""
    return P(*at.token_spec, None), at.table_spec, P(at.table_spec[0])


# ------------------------------------------------------------------------------------------------ by device


def by_device(plan: Plan, fn: Callable, in_specs, out_specs) -> Callable:
    return plan.at.by_device(functools.partial(fn, plan), in_specs, out_specs)


def starts(plan: Plan, table) -> tuple[jax.Array, int]:
    """The first row of each block, and the rows of one."""
    size = min(plan.columns, table.shape[0])
    return jnp.arange(0, table.shape[0], size), size


def block(plan: Plan, x, table, bias, start, size):
    """(rows (C, D), logits (N, C), their columns (C,), first row); the last block begins early enough to be whole, and
    columns that it shares with the one before are NOWHERE, as are those that are no tokens."""
    first = jnp.minimum(start, table.shape[0] - size)
    rows = jax.lax.dynamic_slice_in_dim(table, first, size)
    for axis in reversed(plan.at.embed):
        rows = rings.gather(rows, axis, plan.at.size((axis,)))
    logits = jax.lax.dot_general(x, rows, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    bias = None if bias is None else jax.lax.dynamic_slice_in_dim(bias, first, size)
    shard = jax.lax.axis_index(plan.at.vocab) if plan.at.vocab else 0
    columns = first + jnp.arange(size)
    columns = jnp.where(columns >= start, columns + shard * table.shape[0], NOWHERE)
    if plan.vocab:
        columns = jnp.where(columns < plan.vocab, columns, NOWHERE)
    return rows, _finish(logits, bias, plan.softcap, plan.temperature), columns, first


def statistics(plan: Plan, x, table, bias, targets):
    """(-log p(target), log Z, likeliest column) by a running maximum and sum (Milakov & Gimelshein, arXiv:1805.02867)."""
    shape, x, targets = targets.shape, x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    first_rows, size = starts(plan, table)

    def step(carry, start):
        top, total, picked, best = carry
        _, logits, columns, _ = block(plan, x, table, bias, start, size)
        logits = jnp.where(columns == NOWHERE, -jnp.inf, logits)
        block_top = logits.max(-1)
        new_top = jnp.maximum(top, block_top)
        total = total * jnp.exp(top - new_top) + jnp.exp(logits - new_top[:, None]).sum(-1)
        picked += jnp.where(columns == targets[:, None], logits, 0.0).sum(-1)
        best = jnp.where(block_top > top, columns[jnp.argmax(logits, axis=-1)], best)
        return (new_top, total, picked, best), None

    zeros = jnp.zeros(len(targets), jnp.float32)
    (top, total, picked, best), _ = jax.lax.scan(step, (zeros + MASKED, zeros, zeros, targets * 0), first_rows)
    if plan.at.vocab:
        own, top = top, jax.lax.pmax(top, plan.at.vocab)
        # One array: the GPU compiler has failed on a sum of two.
        total, picked = jax.lax.psum(jnp.stack([total * jnp.exp(own - top), picked]), plan.at.vocab)
        best = jax.lax.pmin(jnp.where(own == top, best, jnp.iinfo(best.dtype).max), plan.at.vocab)
    log_z = jnp.log(total) + top
    return tuple(y.reshape(shape) for y in (log_z - picked, log_z, best))


def _gradients(plan: Plan, x, table, bias, targets, log_z, d_nats, d_log_z):
    targets, log_z, d_nats, d_log_z = (y.reshape(-1, 1) for y in (targets, log_z, d_nats, d_log_z))

    def slope(logits, columns, _):
        return jnp.exp(logits - log_z) * (d_nats + d_log_z) - jnp.where(columns == targets, d_nats, 0.0)

    return gradients(plan, x, table, bias, slope)


def gradients(plan: Plan, x, table, bias, slope: Callable):
    """Those of x, table and bias; the logits are made once more.

    slope(logits (N, C), columns (C,), start) -> the loss's derivative by these logits (N, C), of the block from `start` on.
    """
    shape, x = x.shape, x.reshape(-1, x.shape[-1])
    first_rows, size = starts(plan, table)
    trained_x, trained = x[:, plan.frozen :], table[:, plan.frozen :]

    def step(carry, start):
        dx, d_table, d_bias = carry
        rows, logits, columns, first = block(plan, x, table, bias, start, size)
        d = slope(logits, columns, start)
        d = d if plan.temperature == 1.0 else d / plan.temperature
        d = d * (1.0 - jnp.square(logits / (plan.softcap / plan.temperature))) if plan.softcap else d
        d = jnp.where(columns == NOWHERE, 0.0, d)
        d_bias = None if bias is None else _add(d_bias, jax.lax.psum(d.sum(0), plan.at.tokens), first)
        d = d.astype(x.dtype)
        product = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
        dx += product(d, rows, (((1,), (0,)), ((), ())))
        if trained.shape[1]:
            d_rows = _reduce(plan, product(trained_x, d, (((0,), (0,)), ((), ()))))
            d_table = _add(d_table, d_rows.T, first)
        return (dx, d_table, d_bias), None

    start = (jnp.zeros(x.shape, jnp.float32), jnp.zeros_like(trained), None if bias is None else jnp.zeros_like(bias))
    (dx, d_table, d_bias), _ = jax.lax.scan(step, start, first_rows)
    d_table = jnp.pad(d_table, ((0, 0), (table.shape[1] - trained.shape[1], 0)))
    return jax.lax.psum(dx, plan.at.vocab).astype(x.dtype).reshape(shape), d_table, d_bias


def _add(total, block, first):
    """Rows that two blocks share are zero in the later one."""
    here = jax.lax.dynamic_slice_in_dim(total, first, block.shape[0])
    return jax.lax.dynamic_update_slice_in_dim(total, here + block.astype(total.dtype), first, 0)


def _reduce(plan: Plan, d_rows):
    """A block's gradient, (D, C) of a device's own tokens, summed over all tokens, in float32, and cut as the table is."""
    for axis in plan.at.embed:
        d_rows = rings.scatter(d_rows, axis, plan.at.size((axis,)))
    # Devices that share their tokens have each added the same.
    d_rows = d_rows / plan.at.size(tuple(a for a in plan.at.embed if a not in plan.at.tokens))
    return jax.lax.psum(d_rows, tuple(a for a in plan.at.tokens if a not in plan.at.embed))
