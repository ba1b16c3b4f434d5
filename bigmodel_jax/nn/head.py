"""The head of a language model, and its cross-entropy without the logits in memory.

For a large vocabulary the logits are a step's largest array: 2.1 GB in float32 for 4,096 tokens of
Llama 3. Here they are made in blocks of the vocabulary, once for log Z and once more for the
gradients. The mathematics is the same, with one more product with the table. The collectives are
written out, because under FSDP the compiler holds the table's whole gradient on every device and
all-reduces it. Here a block of rows is gathered for its use, and its gradient is reduce-scattered
before the next block's is made.

Rabe & Staats, arXiv:2112.05682 (running softmax); Wijmans et al., arXiv:2411.09009 (over the
vocabulary).

Shapes: N tokens, D embed, V vocab, C columns of a block of logits; in a per-device region, the
device's own.
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
from bigmodel_jax.nn.cross_entropy import MASKED
from bigmodel_jax.nn.cross_entropy import cross_entropy as of_logits
from bigmodel_jax.nn.lora import Adapted
from bigmodel_jax.nn.table import Cut, cut

Form = Literal["auto", "whole", "blocks"]

# A block of logits has at most these bytes on a device, and at least these columns: a product with
# fewer columns wastes its reads.
BLOCK_BYTES = 2**27
LEAST_COLUMNS = 2048
NOWHERE = jnp.iinfo(jnp.int32).min  # number of a column that an earlier block had, or of a padding row


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """Logits not computed yet: x (..., T, D) times the rows of table (V, D), plus bias (V,).

    softcap: if not 0, logits become softcap tanh(logits / softcap) (Gemma 2, arXiv:2408.00118).
    temperature: the logits' divisor. vocab: the number of first rows that are tokens, 0 = all. The
    other rows are padding and have no logits. table may have adapters (lora.py), with no gradient
    for the frozen table, or be stored in blocks (core/storage.py)."""

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
        """x and table as blocks read them. Adapters become further columns of both arrays."""
        if not isinstance(self.table, Adapted):
            return self.x, storage.dense(self.table, self.x.dtype), self.bias
        if cut(self.x.shape[:-1], self.table.shape).embed or not self.table.has_columns:
            return self.x, self.table.dense(self.x.dtype), self.bias  # a device holds a part of each row
        x, table, z, columns = self.table.columns(self.x)
        return jnp.concatenate([x, z], axis=-1), jnp.concatenate([table, columns], axis=-1), self.bias

    def frozen_columns(self, at: Cut) -> int:
        """How many of the table's first columns in `arrays` have no gradient."""
        table = self.table
        if not isinstance(table, Adapted) or not table.is_frozen:
            return 0
        extended = table.has_columns and not at.embed
        return table.shape[1] if extended or not table.low else 0

    def logits(self) -> jax.Array:
        """Returns (..., T, vocab) float32."""
        logits = self._of_all_rows()
        return logits[..., : self.vocab] if self.padded else logits

    def masked_logits(self) -> jax.Array:
        """Returns (..., T, V) float32 for a mesh to divide. Padding rows have no probability."""
        logits = self._of_all_rows()
        return jnp.where(jnp.arange(logits.shape[-1]) < self.vocab, logits, MASKED)

    def in_memory(self, at: Cut) -> jax.Array:
        """Returns (..., T, V or vocab) float32: padding columns, if any, have no probability."""
        return self.masked_logits() if self.padded and at.vocab else self.logits()

    def _of_all_rows(self) -> jax.Array:
        logits = linear.unembed({"table": self.table}, self.x)
        logits = _finish(logits, self.bias, self.softcap, self.temperature)
        return constrain(logits, *(None,) * (logits.ndim - 3), "batch", "seq", "vocab")


def _finish(logits, bias, softcap, temperature):
    logits = logits if bias is None else logits + bias.astype(jnp.float32)
    logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
    return logits if temperature == 1.0 else logits / temperature


class Plan(NamedTuple):
    """How a device makes its logits.

    columns: the columns of a block. vocab: the number of rows that are tokens, 0 = all. frozen: how
    many of the table's first columns have no gradient."""

    at: Cut
    columns: int
    softcap: float
    vocab: int
    temperature: float
    frozen: int = 0


def make_plan(head: Head, columns: int = 0) -> Plan:
    """The plan of a head. columns: the columns of a device's block; 0 = as many as fit in
    BLOCK_BYTES."""
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
    """Whether a device's logits exceed two blocks: the saved memory is then worth a product."""
    return 4 * math.prod(local_shape(head, plan.at)) > 2 * BLOCK_BYTES


def in_blocks(head: Head, plan: Plan, form: Form) -> bool:
    """Whether the logits are made in blocks; "auto": if they are large."""
    return form == "blocks" or (form == "auto" and is_large(head, plan))


def cross_entropy(
    head: Head, targets: jax.Array, form: Form = "auto", *, columns: int = 0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """-log p(target) and log Z in nats, and the likeliest column, each (..., T); targets: int.

    Differentiable in x, table and bias. form: the logits in memory ("whole"), in blocks, or
    ("auto") in blocks if a device's logits exceed two of them. columns: as in `make_plan`.
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
    """The partition specs of x, table and bias."""
    return P(*at.token_spec, None), at.table_spec, P(at.table_spec[0])


def by_device(plan: Plan, fn: Callable, in_specs, out_specs) -> Callable:
    """`fn(plan, ...)` on each device's own pieces."""
    return plan.at.by_device(functools.partial(fn, plan), in_specs, out_specs)


def starts(plan: Plan, table) -> tuple[jax.Array, int]:
    """The first row of each block, and the number of rows of a block."""
    size = min(plan.columns, table.shape[0])
    return jnp.arange(0, table.shape[0], size), size


def block(plan: Plan, x, table, bias, start, size):
    """Returns (rows (C, D), logits (N, C), their columns (C,), first row). The last block starts
    early enough to be whole. Columns it shares with the one before are NOWHERE, as are padding
    columns."""
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
    """-log p(target), log Z and the likeliest column by a running softmax (arXiv:1805.02867)."""
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
        # The sums are stacked into one array, because the GPU compiler has failed on a psum of two.
        total, picked = jax.lax.psum(jnp.stack([total * jnp.exp(own - top), picked]), plan.at.vocab)
        # If several devices have the same maximum, the smallest column counts.
        best = jax.lax.pmin(jnp.where(own == top, best, jnp.iinfo(best.dtype).max), plan.at.vocab)
    log_z = jnp.log(total) + top
    return tuple(y.reshape(shape) for y in (log_z - picked, log_z, best))


def _gradients(plan: Plan, x, table, bias, targets, log_z, d_nats, d_log_z):
    targets, log_z, d_nats, d_log_z = (y.reshape(-1, 1) for y in (targets, log_z, d_nats, d_log_z))

    def slope(logits, columns, _):
        return jnp.exp(logits - log_z) * (d_nats + d_log_z) - jnp.where(columns == targets, d_nats, 0.0)

    return gradients(plan, x, table, bias, slope)


def gradients(plan: Plan, x, table, bias, slope: Callable):
    """The gradients of x, table and bias. The logits are made once more.

    slope(logits (N, C), columns (C,), start) -> (N, C): the loss's derivative by the block's
    logits.
    """
    shape, x = x.shape, x.reshape(-1, x.shape[-1])
    first_rows, size = starts(plan, table)
    trained_x, trained = x[:, plan.frozen :], table[:, plan.frozen :]

    def step(carry, start):
        dx, d_table, d_bias = carry
        rows, logits, columns, first = block(plan, x, table, bias, start, size)
        d = slope(logits, columns, start)
        d = d if plan.temperature == 1.0 else d / plan.temperature
        # d tanh(u) / du = 1 - tanh(u)^2, where tanh(u) = capped logit / softcap.
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
    """`total` plus a block's rows. Rows that two blocks share are zero in the later block."""
    here = jax.lax.dynamic_slice_in_dim(total, first, block.shape[0])
    return jax.lax.dynamic_update_slice_in_dim(total, here + block.astype(total.dtype), first, 0)


def _reduce(plan: Plan, d_rows):
    """A block's gradient (D, C), summed over all tokens in float32 and sharded as the table is."""
    for axis in plan.at.embed:
        d_rows = rings.scatter(d_rows, axis, plan.at.size((axis,)))
    # Devices with the same tokens have each added the same gradient.
    d_rows = d_rows / plan.at.size(tuple(a for a in plan.at.embed if a not in plan.at.tokens))
    return jax.lax.psum(d_rows, tuple(a for a in plan.at.tokens if a not in plan.at.embed))
