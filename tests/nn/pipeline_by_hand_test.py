"""A pipeline on two and four devices against a loop in numpy: order of layers, rows, shared arrays
and sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.nn import pipeline, stack
from bigmodel_jax.nn.experts import moe

ROWS, LAYERS = 16, 8
SHAPES = {
    "more pieces than stages": (2, 8, 1, 1),
    "four stages": (4, 8, 1, 1),
    "two rounds": (2, 4, 2, 1),
    "four rounds": (2, 4, 4, 1),
    "stages and data": (2, 4, 2, 2),
}


def within(shape: tuple, fn, *args, remat: bool = False):
    """fn(*args) traced as a step for that pipeline."""
    stages, pieces, rounds, data = shape
    parallel = ParallelConfig(
        stage=stages, data=data, pipeline_microbatches=pieces, pipeline_rounds=rounds, pipeline_remat=remat
    )
    mesh = sharding.make_mesh(parallel, jax.devices()[: stages * data])

    def run(*args):
        with sharding.use(mesh, Rules(), parallel):
            return fn(*args)

    return jax.tree.map(np.asarray, jax.jit(run)(*args))


def block(p, x, layer, shift, again):
    """Neither order of layers nor pairing of rows with what is shared can be changed without
    another result."""
    new = x * p["factor"] + shift + 0.1 * layer
    return new, (new.sum(), (new * again).sum(0))


P = {"factor": np.linspace(0.3, 0.9, LAYERS, dtype=np.float32)}
X = np.random.default_rng(0).standard_normal((ROWS, 3)).astype(np.float32)
SHIFT = np.random.default_rng(1).standard_normal((ROWS, 3)).astype(np.float32)
NUMBER = np.arange(LAYERS, dtype=np.float32)


def by_hand():
    x, sums, weighted = X.astype(np.float64), [], []
    for n in range(LAYERS):
        x = x * P["factor"][n] + SHIFT + 0.1 * n
        sums.append(x.sum())
        weighted.append((x * SHIFT).sum(0))
    return x, np.array(sums), np.array(weighted)


def run(p, x, shift):
    return stack.run(block, p, x, NUMBER, shared=(shift, shift))


@pytest.mark.parametrize("case", SHAPES)
def test_a_pipeline_is_its_layers_one_after_the_other(case):
    want, sums, weighted = by_hand()
    got, ys = within(SHAPES[case], run, P, X, SHIFT)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ys[0], sums, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(ys[1], weighted, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "remat"), [("more pieces than stages", False), ("two rounds", True)])
def test_its_gradients_are_those_of_the_layers(case, remat):
    def loss(p, x, shift):
        x, ys = run(p, x, shift)
        return jnp.sum(jnp.sin(x)) + jnp.sum(jnp.cos(0.01 * ys[1]))

    grads = jax.grad(loss, argnums=(0, 1, 2))
    want = jax.jit(grads)(P, X, SHIFT)
    got = within(SHAPES[case], grads, P, X, SHIFT, remat=remat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["two rounds", "stages and data"])
def test_experts_in_a_pipeline_are_those_of_one_device(case):
    """The test compares outputs and the loads for the auxiliary losses: sums over all pieces,
    without padding."""
    dim, experts, keys = 4, 3, jax.random.split(jax.random.key(0), 4)
    shapes = {"gate": (experts, dim, 5), "up": (experts, dim, 5), "down": (experts, 5, dim)}
    p = {name: 0.5 * jax.random.normal(keys[i], (LAYERS, *shape)) for i, (name, shape) in enumerate(shapes.items())}
    p = {"experts": p, "router": {"kernel": jax.random.normal(keys[3], (LAYERS, dim, experts))}}
    x = np.random.default_rng(2).standard_normal((ROWS, 2, dim)).astype(np.float32)
    mask = np.random.default_rng(3).random((ROWS, 2)) < 0.7

    def layer(p, x, _, mask):
        routing = moe.route(p["router"], x, 2)
        y = jnp.tanh(x + moe.experts(p["experts"], x, routing, mask, implementation="dense"))
        return y, moe.load(routing, mask)

    def of(p, x, mask):
        return stack.run(layer, p, x, shared=(mask,))

    want, want_loads = jax.jit(of)(p, x, mask)
    got, loads = within(SHAPES[case], of, p, x, mask)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), loads, want_loads)
    np.testing.assert_array_equal(loads.tokens, np.full(LAYERS, mask.sum()))


@pytest.mark.parametrize(("stages", "rounds"), [(2, 1), (2, 2), (2, 3), (4, 2)])
def test_layers_are_dealt_to_their_rounds(stages, rounds):
    """Round j of stage s holds the group of layers number j n + s."""
    layers = np.arange(stages * rounds * 2)
    got = within((stages, stages, rounds, 1), lambda w: pipeline.deal(w, stages, rounds), layers)
    np.testing.assert_array_equal(got, layers.reshape(rounds, stages, 2))


def test_what_is_shared_twice_travels_once():
    a, b = object(), object()
    assert pipeline.shared_once([a, b, a, b, b]) == ([0, 1], [0, 1, 0, 1, 1])
    assert pipeline.shared_once([a]) == ([0], [0])


def test_ticks():
    assert pipeline.ticks(4, 8, 1) == 11
    assert pipeline.ticks(2, 4, 3) == 13
