"""Attention to a sequence sharded over devices: the layout of the arrays, and the exchange.

ring: every device keeps its queries, and the keys travel from device to device (Liu et al.,
arXiv:2310.01889). ulysses: an all-to-all gives each device the whole sequence for a part of the
heads (arXiv:2309.14509).

Shapes: B batch, T query and S key of one device, H heads, K kv heads, h head_dim, w value
dimensions; n devices.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import MeshAxes
from bigmodel_jax.nn.attention import blockwise
from bigmodel_jax.nn.attention.blockwise import Keys
from bigmodel_jax.nn.attention.visibility import Rule, Where, reach


class Place(NamedTuple):
    """The mesh axes of the dimensions of queries and keys.

    seq is None if the sequence is not sharded.
    """

    batch: MeshAxes = None
    seq: MeshAxes = None
    heads: MeshAxes = None
    kv_heads: MeshAxes = None

    @property
    def q(self) -> P:
        return P(self.batch, self.seq, self.heads, None)

    @property
    def kv(self) -> P:
        return P(self.batch, self.seq, self.kv_heads, None)

    @property
    def where(self) -> P:
        return P(self.batch, self.seq)

    @property
    def sinks(self) -> P:
        return P(self.heads)


def place(q: jax.Array, k: jax.Array) -> Place:
    """The `Place` of q (B, T, H, h) and k (B, S, K, h) in the step being traced."""
    mesh = sharding.current_mesh()
    if mesh is None or mesh.size == 1:
        return Place()
    batch, seq, heads, _ = sharding.fitting_spec(q.shape, "batch", "seq", "heads", None)
    _, k_seq, kv_heads, _ = sharding.fitting_spec(k.shape, "batch", "seq", "kv_heads", None)
    if heads != kv_heads and k.shape[2] > 1:
        heads = kv_heads = None  # else a device would hold query heads whose keys lie on another device
    cut = isinstance(seq, str) and seq == k_seq and mesh.shape[seq] > 1
    return Place(batch, seq if cut else None, heads, kv_heads)


def spread(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """k and v with kv heads repeated, so that they shard like the query heads (B, T, H, h).

    If kv heads are fewer than the devices over `heads`, their weights are replicated
    (sharding.shardings). A device then keeps the repeated head that its query heads share. Without
    repeated heads every device would compute all query heads.
    """
    mesh, rules, _ = sharding.current()
    K, H = k.shape[2], q.shape[2]
    if mesh is None or mesh.size == 1 or K == 1 or rules.heads != rules.kv_heads:
        return k, v
    (axes,) = sharding.fitting_spec((H,), "heads")
    n = math.prod(mesh.shape[a] for a in sharding.axis_names(axes))
    times = math.lcm(K, n) // K
    return tuple(jnp.repeat(x, times, axis=2) for x in (k, v)) if times > 1 else (k, v)


# --------------------------------------------------------------------------------------------- ring

# (rule, axis, q, k, v, sinks, q_where, k_where, window) -> (B, T, H, w)
Turns = Callable[..., jax.Array]


def ring(
    rule: Rule, axis: str, turns: Turns, q, k, v, sinks, q_where: Where, k_where: Where, local: jax.Array | None
) -> jax.Array:
    """One device's queries against all keys, (B, T, H, w), in a shard_map over `axis`.

    q is scaled already. turns: `blockwise_turns`, or a kernel's (splash_ring.py).

    A causal ring is in zig-zag order: device i of n holds pieces i and 2n-1-i of 2n pieces. In the
    order of the text, the last device would compute n blocks and the first device one block, and
    all would wait for the last. In zig-zag order each device computes half a block per turn. The
    order is made for this layer's attention and undone after it, so that no other operation that
    counts slots sees it (shifts, learned positions, experts' places). The skipped blocks do not
    reduce what the devices exchange.
    """
    zigzag = rule.causal and q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
    if zigzag:
        q, k, v, q_where, k_where = jax.tree.map(functools.partial(_reorder, axis=axis), (q, k, v, q_where, k_where))
    out = turns(rule, axis, q, k, v, sinks, q_where, k_where, reach(rule, local))
    return _reorder(out, axis, back=True) if zigzag else out


def _reorder(x: jax.Array, axis: str, back: bool = False) -> jax.Array:
    """Pieces 2i and 2i + 1 on device i -> pieces i and 2n-1-i, in this order.

    back: the inverse.
    """
    n = jax.lax.axis_size(axis)
    x = _swapped(x, axis) if back else x
    moved = []
    for parity, half in enumerate(jnp.split(x, 2, axis=1)):
        moves = [(i, min(2 * i + parity, 2 * n - 1 - 2 * i - parity)) for i in range(n)]
        moved.append(jax.lax.ppermute(half, axis, [pair[::-1] for pair in moves] if back else moves))
    x = jnp.concatenate(moved, axis=1)
    return x if back else _swapped(x, axis)


def _swapped(x: jax.Array, axis: str) -> jax.Array:
    """x with its halves swapped on devices of odd number.

    On these devices the even-numbered one of pieces i and 2n-1-i arrived first.
    """
    odd = jax.lax.axis_index(axis) % 2 == 1
    return jnp.where(odd, jnp.roll(x, x.shape[1] // 2, axis=1), x)


def pass_on(tree, axis: str):
    """Sends every array to the next device of the ring."""
    n = jax.lax.axis_size(axis)
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, [(i, (i + 1) % n) for i in range(n)]), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def blockwise_turns(rule, axis, q, k, v, sinks, q_where, k_where, window):
    """The ring with the blocks of blockwise.py, for any platform and every rule."""
    return _ring_forward(rule, axis, q, k, v, sinks, q_where, k_where, window)[0]


def _ring_forward(rule, axis, q, k, v, sinks, q_where, k_where, window):
    keys = Keys(k, v, k_where)
    queries, seen = blockwise.bound(blockwise.cut_queries(q, q_where, k.shape[2]), keys)

    def turn(carry, _):
        running, keys = carry
        # Computation and transfer read the same keys, so they overlap.
        return (blockwise.accumulate(rule, running, queries, keys, window), pass_on(keys, axis)), None

    running = blockwise.start(queries, sinks, v.shape[-1])
    (running, last), _ = jax.lax.scan(turn, (running, seen), length=jax.lax.axis_size(axis) - 1)
    running = blockwise.accumulate(rule, running, queries, last, window)
    out, log_sum = blockwise.finish(running, q.shape, v.dtype)
    return out, (q, keys, sinks, q_where, window, out, log_sum)


def _ring_backward(rule, axis, saved, d_out):
    q, keys, sinks, q_where, window, out, log_sum = saved
    queries = blockwise.cut_queries(q, q_where, keys.k.shape[2])
    given = blockwise.incoming(d_out, out, log_sum, sinks, q_where)

    def add(dq, keys, dkv):
        dq, *dkv = blockwise.gradients(rule, dq, queries, given, keys, *dkv, window)
        return dq, tuple(dkv)

    def turn(carry, _):
        dq, keys, dkv = carry
        dq, dkv = add(dq, keys, dkv)
        return (dq, *pass_on((keys, dkv), axis)), None

    # The keys' gradients travel with the keys, in float32, since every device adds to them.
    dkv = tuple(jnp.zeros(x.shape, jnp.float32) for x in (keys.k, keys.v))
    carry = jnp.zeros(queries.q.shape, jnp.float32), keys, dkv
    (dq, last, dkv), _ = jax.lax.scan(turn, carry, length=jax.lax.axis_size(axis) - 1)
    dq, dkv = add(dq, last, dkv)
    dk, dv = pass_on(dkv, axis)  # the last step brings them back to the keys' device
    dq = blockwise.join_queries(dq, q.shape).astype(q.dtype)
    return dq, dk.astype(keys.k.dtype), dv.astype(keys.v.dtype), given.d_sinks, None, None, None


blockwise_turns.defvjp(_ring_forward, _ring_backward)


# ------------------------------------------------------------------------------------------ ulysses


def ulysses(attend, axis: str, q, k, v, sinks, q_where: Where, k_where: Where, local: jax.Array | None) -> jax.Array:
    """One device's part, (B, T, H, w), in a shard_map over `axis`.

    `attend` computes 1 / n of the heads over the whole sequence. If devices outnumber the kv heads,
    the kv heads are repeated, so that each device gets the head that it needs. Raises ValueError if
    n does not divide the heads.
    """
    n, K, heads = jax.lax.axis_size(axis), k.shape[2], q.shape[2]
    if heads % n:
        raise ValueError(
            f"parallel.seq = {n}: parallel.context = 'ulysses' gives every device its share of the attention heads, and "
            f"{heads} (model.num_heads / parallel.tensor) are not divisible; 'ring' takes any number"
        )
    k, v = (jnp.repeat(x, math.lcm(K, n) // K, axis=2) for x in (k, v))
    # Each device had all heads of a part of the sequence. Now it gets a part of the heads for the
    # whole sequence: (B, T / n, H, D) -> (B, T, H / n, D).
    q, k, v = (jax.lax.all_to_all(x, axis, split_axis=2, concat_axis=1, tiled=True) for x in (q, k, v))
    q_where, k_where = jax.tree.map(lambda x: jax.lax.all_gather(x, axis, axis=1, tiled=True), (q_where, k_where))
    if sinks is not None:
        sinks = jax.lax.dynamic_slice_in_dim(sinks, jax.lax.axis_index(axis) * (heads // n), heads // n)
    out = attend(q, k, v, sinks, q_where, k_where, local)
    return jax.lax.all_to_all(out, axis, split_axis=1, concat_axis=2, tiled=True)
