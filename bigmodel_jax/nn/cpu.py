"""Forms of the same mathematics that XLA's CPU backend runs fast, for a mesh of one CPU device.

Prototypes run on CPUs. On CPUs the forms that autodiff writes cost a third of a step.
- `dense` computes the weight gradient as x^T dy. For autodiff's (dy^T x)^T, XLA copies a transposed
  operand and takes a slow path.
- `adapted` adds a low-rank adapter to its weight before the product, and again in the backward
  pass. Separate narrow products and sums of outputs would hinder the wide products.
- `attend` keeps exp(scores) once, unnormalised. Its gradient needs no reduction over (T, S).
  Causal queries go by blocks, which leave out the keys after them.
- `softmax_cross_entropy` keeps exp(logits). Forward and backward take one pass each.
On TPU and GPU the compiler fuses the plain definitions better, so they are used there.
"""

import functools
import math

import jax
import jax.numpy as jnp

from bigmodel_jax.core import sharding

LEAST_ROWS, MOST_ROWS = 64, 256  # limits of the rows of a block of queries
WIDE = 2048  # from this many columns of a weight on, x^T dy is faster with x^T materialised


def active() -> bool:
    """Whether the program being traced will run on one CPU device."""
    mesh = sharding.current_mesh()
    return mesh is not None and mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"


def _product(a, b, contract_a: int, contract_b: int, batch: tuple[int, ...] = ()):
    return jax.lax.dot_general(a, b, (((contract_a,), (contract_b,)), (batch, batch)))


# -------------------------------------------------------------------------------------------- dense


@jax.custom_vjp
def dense(x: jax.Array, w: jax.Array) -> jax.Array:
    """x (..., I) @ w (I, O)."""
    return x @ w


def _dense_forward(x, w):
    return x @ w, (x, w)


def _dense_backward(saved, dy):
    x, w = saved
    rows, d_rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dx = _product(d_rows, w, 1, 1).reshape(x.shape)
    if w.shape[1] >= WIDE:
        return dx, _product(jax.lax.optimization_barrier(rows.T), d_rows, 1, 0)
    return dx, _product(rows, d_rows, 0, 0)


dense.defvjp(_dense_forward, _dense_backward)


# ------------------------------------------------------------------------- a weight with an adapter


def merging_pays(rows: int, inner: int, outer: int) -> bool:
    """Whether low-rank products of `rows` rows move more memory than the weight (inner, outer)."""
    return rows * (inner + outer) >= inner * outer


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def adapted(scale: float, x: jax.Array, w: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """x (..., *I) @ (w + scale a b) -> (..., *O); w (*I, *O), a (*I, r), b (r, *O)."""
    return _adapted_forward(scale, x, w, a, b)[0]


def _matrices(scale, x, w, a, b):
    """x, w, scale a and b, each as a matrix."""
    inner = math.prod(a.shape[:-1])
    return x.reshape(-1, inner), w.reshape(inner, -1), (scale * a).reshape(inner, -1), b.reshape(b.shape[0], -1)


def _adapted_forward(scale, *arrays):
    x, w, a, b = _matrices(scale, *arrays)
    kept = arrays[0].shape[: arrays[0].ndim - arrays[2].ndim + 1]
    # The arrays are saved in their given shapes, so that a loop over layers keeps no second copy.
    return (x @ (w + a @ b)).reshape(*kept, *arrays[3].shape[1:]), arrays


def _adapted_backward(scale, arrays, dy):
    x, w, a, b = _matrices(scale, *arrays)
    dy = dy.reshape(x.shape[0], -1)
    dx = _product(dy, w + a @ b, 1, 1)
    # The product is computed as (r, I) and then transposed: the other order takes four times as
    # long. Without the barrier, XLA would choose that order.
    da = scale * jax.lax.optimization_barrier(_product(_product(dy, b, 1, 1), x, 0, 0)).T
    # For a frozen weight, the compiler removes x^T dy.
    gradients = dx, _product(x, dy, 0, 0), da, _product(x @ a, dy, 0, 0)
    return tuple(g.reshape(of.shape) for g, of in zip(gradients, arrays, strict=True))


adapted.defvjp(_adapted_forward, _adapted_backward)


# ---------------------------------------------------------------------------------------- attention


def block_rows(num_rows: int) -> int:
    """The rows of a block of queries, where a block sees no keys after it.

    More blocks leave out more products. But a product of fewer rows than LEAST_ROWS is slow, and
    each block takes time to compile, so a block has half of the rows, up to MOST_ROWS.
    """
    return max(LEAST_ROWS, min(MOST_ROWS, -(-num_rows // 2)))


def _transposed(x):
    """Maps (..., T, h) -> (..., h, T), materialised.

    This array is small, and it saves transposing a (T, S) operand.
    """
    return jax.lax.optimization_barrier(x.swapaxes(2, 3))


@jax.custom_vjp
def attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
    """softmax(q k + bias) v, (B, K, G T, h).

    q: (B, K, G T, h), scaled; k, v: (B, K, S, h); bias: (B, 1, G T, S), 0 or very negative.
    """
    return _attend_forward(q, k, v, bias)[0]


def _attend_forward(q, k, v, bias):
    scores = _product(q, k, 3, 3, (0, 1)) + bias
    e = jnp.exp(scores - scores.max(-1, keepdims=True))
    total = e.sum(-1, keepdims=True)
    out = _product(e, v, 3, 2, (0, 1)) / total
    return out, (q, k, v, e, total, out)


def _attend_backward(saved, d_out):
    q, k, v, e, total, out = saved
    # The outputs alone give the sum over keys of p dp (Dao, arXiv:2307.08691, section 3.1).
    delta = (d_out * out).sum(-1, keepdims=True)
    # d_scores = p (dp - delta) with p = e / total. Dividing d_out instead avoids an array for p.
    d_out = d_out / total
    d_scores = e * (_product(d_out, v, 3, 3, (0, 1)) - delta / total)
    dq = _product(d_scores, k, 3, 2, (0, 1))
    dk = _product(_transposed(q), d_scores, 3, 2, (0, 1)).swapaxes(2, 3)
    dv = _product(_transposed(d_out), e, 3, 2, (0, 1)).swapaxes(2, 3)
    return dq, dk, dv, None


attend.defvjp(_attend_forward, _attend_backward)


# ------------------------------------------------------------------------------------ cross-entropy


@jax.custom_vjp
def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (-log p(target), log Z), each (...,); logits (..., V) float32, targets (...) int."""
    return _cross_entropy_forward(logits, targets)[0]


def _cross_entropy_forward(logits, targets):
    top = logits.max(-1, keepdims=True)
    e = jnp.exp(logits - top)
    total = e.sum(-1)
    log_z = jnp.log(total) + top[..., 0]
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (log_z - picked, log_z), (e, total, targets)


def _cross_entropy_backward(saved, gradients):
    e, total, targets = saved
    d_nats, d_log_z = gradients
    hit = jnp.arange(e.shape[-1]) == targets[..., None]
    # d_logits = p (d_nats + d_log_z) - one_hot(target) d_nats, with p = e / total.
    return e * ((d_nats + d_log_z) / total)[..., None] - jnp.where(hit, d_nats[..., None], 0.0), None


softmax_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
