"""The forms for one CPU device are the definitions, forward and backward."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.nn import cpu
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.attention.attention import Where

RNG = np.random.default_rng(0)
close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def on_one_cpu(fn):
    def run(*args):
        with sharding.use(sharding.make_mesh(ParallelConfig(), jax.devices()[:1]), Rules()):
            assert cpu.active()
            return fn(*args)

    return jax.jit(run)


def test_it_is_active_on_one_cpu_alone():
    assert not cpu.active()
    with sharding.use(sharding.make_mesh(ParallelConfig(), jax.devices()[:2]), Rules()):
        assert not cpu.active()


@pytest.mark.parametrize("columns", [5, cpu.WIDE])
def test_products(columns):
    x, w, dy = normal(2, 3, 4), normal(4, columns), normal(2, 3, columns)
    y, pull = jax.vjp(cpu.dense, x, w)
    close(y, x @ w)
    dx, dw = pull(jnp.asarray(dy))
    close(dx, dy @ w.T)
    close(dw, x.reshape(6, 4).T @ dy.reshape(6, columns))


@pytest.mark.slow
@pytest.mark.parametrize(("inner", "outer"), [((6,), (2, 4)), ((2, 4), (6,))], ids=str)
def test_a_weight_with_an_adapter_is_their_sum(inner, outer):
    x, w, a, b = normal(2, 9, *inner), normal(*inner, *outer), normal(*inner, 3), normal(3, *outer)

    def by_hand(x, w, a, b):
        return jnp.tensordot(x, w + 0.5 * jnp.tensordot(a, b, 1), len(inner))

    (want, pull), (y, own) = jax.vjp(by_hand, x, w, a, b), jax.vjp(functools.partial(cpu.adapted, 0.5), x, w, a, b)
    close(y, want)
    dy = normal(*want.shape)
    for got, wanted in zip(own(jnp.asarray(dy)), pull(jnp.asarray(dy)), strict=True):
        close(got, wanted)


@pytest.mark.parametrize(("least", "causal"), [(cpu.LEAST_ROWS, True), (3, True), (4, True), (3, False)])
def test_attention_is_what_several_devices_compute(least, causal, monkeypatch):
    """A row has two documents and padding, each key head serves two query heads, and attention has
    a window. Gradients are compared as well, with one block of queries, with two, and with two of
    which the last is shorter."""
    monkeypatch.setattr(cpu, "LEAST_ROWS", least)
    q, k, v = normal(2, 6, 4, 8), normal(2, 6, 2, 8), normal(2, 6, 2, 5)
    at = Where(jnp.array([[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 0, 0]]), jnp.array([[1, 1, 1, 1, 2, 2], [1, 1, 1, 2, 0, 0]]))

    def loss(q, k, v):
        out = attention.attend(q, k, v, at, at, causal=causal, window=3, implementation="plain")
        return jnp.sum(jnp.sin(out) * (at.segments > 0)[..., None, None]), out

    grads = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    (want, out), (got, own) = jax.jit(grads)(q, k, v), on_one_cpu(grads)(q, k, v)
    close(own[at.segments > 0], out[at.segments > 0])
    jax.tree.map(close, got, want)


def test_cross_entropy():
    logits, targets = 3 * normal(4, 7), np.array([0, 6, 3, 3])
    nats, log_z = cpu.softmax_cross_entropy(jnp.asarray(logits), targets)
    for row, target, a, b in zip(logits.tolist(), targets, nats, log_z, strict=True):
        z = math.log(sum(map(math.exp, row)))
        assert float(b) == pytest.approx(z, rel=1e-5)
        assert float(a) == pytest.approx(z - row[target], rel=1e-5, abs=1e-6)
    probs = np.exp(logits - np.asarray(log_z)[:, None])
    hit = np.arange(7) == targets[:, None]

    def weighted(logits, of_nats, of_z):
        nats, log_z = cpu.softmax_cross_entropy(logits, targets)
        return jnp.sum(of_nats * nats + of_z * log_z)

    a, b = np.array([1.0, 2, -1, 0.5]), np.array([0.0, 0.3, 0.1, -2])
    close(jax.grad(weighted)(jnp.asarray(logits), a, b), (a + b)[:, None] * probs - a[:, None] * hit)
