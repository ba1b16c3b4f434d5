"""What a watched step measures, against the definitions; and that who does not watch has the
program without it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.config import ReportConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.attention.entropy import QUERIES, entropy
from bigmodel_jax.nn.attention.visibility import Rule, Where
from bigmodel_jax.nn.taps import tapped
from bigmodel_jax.training import watch
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import accumulate, make_train_step
from step_test import CONFIG, LENGTH, ROWS, one_device, text_batch

HALVES = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, microbatches=2))


@functools.cache
def steps():
    """Returns four trees on the host: the state before the step, the states after the ordinary and
    the watched step, and the numbers that the watched step reports."""
    mesh, found = one_device(), []
    before = init_state(HALVES, mesh)
    found.append(sharding.to_host(before))
    found.append(sharding.to_host(make_train_step(HALVES, mesh)(before, text_batch())[0]))
    after, sums = make_train_step(HALVES, mesh, watched=True)(init_state(HALVES, mesh), text_batch())
    return (*found, sharding.to_host(after), watch.values(sharding.to_host(sums)))


def gradients(batch: dict):
    """The mean gradient over a batch's tokens, and their number."""
    state = steps()[0]
    model, weights = CONFIG.make_model(), jax.tree.map(jnp.asarray, state.params)
    grads, mean, *_ = jax.jit(functools.partial(accumulate, CONFIG, model))(weights, {}, batch, jax.random.key(0))
    return jax.tree.map(lambda g: np.asarray(g / mean.count), grads), float(mean.count)


@pytest.mark.slow
def test_who_does_not_watch_has_the_program_as_it_was():
    state = jax.eval_shape(lambda: init_state(CONFIG, one_device()))
    watching = dataclasses.replace(CONFIG, report=ReportConfig(watch=10))
    plain, same, other = (
        make_train_step(config, one_device(), watched=watched).lower(state, text_batch()).as_text()
        for config, watched in ((CONFIG, False), (watching, False), (watching, True))
    )
    assert plain == same
    assert plain != other


@pytest.mark.exhaustive
def test_a_watched_step_trains_as_the_ordinary_one():
    _, ordinary, watched, _ = steps()
    for path, x in params.paths(ordinary.params).items():
        np.testing.assert_allclose(params.paths(watched.params)[path], x, rtol=1e-6, atol=1e-7, err_msg=path)


@pytest.mark.slow
def test_norms_are_by_layer_and_kind():
    before, _, after, seen = steps()
    grads, _ = gradients(text_batch())
    updates = jax.tree.map(np.subtract, after.params, before.params)
    for name, tree, rtol in (
        ("gradients", grads, 1e-5),
        ("parameters", before.params, 1e-6),
        ("updates", updates, 1e-3),
    ):
        attn = jax.tree.leaves(tree["layers"]["attn"])
        layers = len(attn[0])
        wanted = [np.sqrt(sum((x[n].astype(np.float64) ** 2).sum() for x in attn)) for n in range(layers)]
        np.testing.assert_allclose(seen[f"watch/{name}/layers/attn"], wanted, rtol=rtol)
        embed = [np.sqrt((tree["embed"]["table"].astype(np.float64) ** 2).sum())]
        np.testing.assert_allclose(seen[f"watch/{name}/embed"], embed, rtol=rtol)
    total = sum(x**2 for name, xs in seen.items() if name.startswith("watch/gradients/") for x in xs)
    assert total == pytest.approx(sum((g**2).sum() for g in jax.tree.leaves(grads)), rel=1e-5)


@pytest.mark.slow
def test_activations_are_those_of_the_taps():
    before, _, _, seen = steps()
    apply = tapped(CONFIG.make_model().apply, *watch.ACTIVATIONS, "units")
    _, found = jax.jit(apply)(before.params, text_batch())
    for name in watch.ACTIVATIONS:
        wanted = np.sqrt(np.square(np.asarray(found[name], np.float64)).mean((1, 2, 3)))
        np.testing.assert_allclose(seen[f"watch/activations/{name}"], wanted, rtol=1e-5)
    # Every second row is a microbatch. Dead units are counted in each, and then averaged.
    dead = [~(np.asarray(found["units"])[:, half::2] > 0).any((1, 2)) for half in (0, 1)]
    np.testing.assert_allclose(seen["watch/dead_units"], np.mean(dead, axis=(0, 2)), atol=1e-7)


@pytest.mark.slow
def test_noise_is_that_of_the_two_halves():
    """The reference is equations (A.2) and (A.3) of arXiv:1812.06162, on the gradients of the
    microbatches weighted by their tokens."""
    seen = steps()[3]
    whole, _ = gradients(text_batch())
    halves = [gradients({name: x[half::2] for name, x in text_batch().items()}) for half in (0, 1)]
    norms = [sum((g.astype(np.float64) ** 2).sum() for g in jax.tree.leaves(grads)) for grads, _ in halves]
    small = np.average(norms, weights=[count for _, count in halves])
    large = sum((g.astype(np.float64) ** 2).sum() for g in jax.tree.leaves(whole))
    variance = (small - large) / (2 / ROWS - 1 / ROWS)
    signal = (ROWS * large - ROWS / 2 * small) / (ROWS - ROWS / 2)
    assert seen["watch/gradient_variance"] == pytest.approx(variance, rel=1e-4)
    assert seen["watch/gradient_signal"] == pytest.approx(signal, rel=1e-4)
    assert seen["watch/noise_scale"] == pytest.approx(variance / signal, rel=1e-4)


def test_the_noise_scale_of_gradients_whose_noise_is_known():
    """The rows' gradients are 3 plus noise of variance 4 in each of 1,000 numbers, so the trace is
    4,000 and the square 9,000."""
    rng = np.random.default_rng(0)
    variance, signal = [], []
    for _ in range(20):
        rows = 3 + 2 * rng.standard_normal((16, 1000))
        pieces = [watch.piece({"g": jnp.asarray(part.sum(0))}, Mean(0.0, 4.0)) for part in np.split(rows, 4)]
        sums = functools.reduce(lambda a, b: {name: a[name] + b[name] for name in a}, pieces)
        found = watch.values(sharding.to_host(watch.noise(sums, jnp.linalg.norm(rows.mean(0)), 16)))
        variance.append(found["watch/gradient_variance"])
        signal.append(found["watch/gradient_signal"])
    assert np.mean(variance) == pytest.approx(4000, rel=0.03)
    assert np.mean(signal) == pytest.approx(9000, rel=0.01)


def test_a_batch_in_one_piece_has_no_noise_scale():
    sums = watch.piece({"g": jnp.ones(3)}, Mean(jnp.ones(()), jnp.float32(2)))
    assert watch.values(sharding.to_host(watch.noise(sums, jnp.float32(1.0), 2))) == {}


def test_entropy_is_that_of_the_weights():
    """A row has no more queries than are looked at, so all count. It has two documents, padding and
    a causal mask."""
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((2, QUERIES, heads, 4)), jnp.float32) for heads in (4, 2))
    segments = jnp.asarray([[1] * 6 + [2] * 7 + [0] * 3, [1] * 16])
    positions = jnp.asarray([[*range(6), *range(7), *range(3)], [*range(16)]])
    where = Where(positions, segments)
    mask = np.asarray(attention.visible(where, where))
    found, counted = 0.0, 0
    for b in range(2):
        for t in range(QUERIES):
            for head in range(4):
                logits = (np.asarray(k)[b, :, head // 2] @ np.asarray(q)[b, t, head])[mask[b, t]]
                p = np.exp(logits - logits.max())
                p /= p.sum()
                if segments[b, t]:
                    found, counted = found - (p * np.log(p)).sum(), counted + 1
    assert float(entropy(Rule(), q, k, where, where).compute()) == pytest.approx(found / counted, rel=1e-5)


@pytest.mark.slow
def test_entropy_of_equal_logits_is_that_of_the_keys_seen():
    q = jnp.zeros((1, 64, 2, 4))
    where = Where(jnp.arange(64)[None], jnp.ones((1, 64), jnp.int32))
    seen = np.arange(1, QUERIES + 1) * 4  # the queries that are looked at see so many keys
    assert float(entropy(Rule(), q, q, where, where).compute()) == pytest.approx(np.log(seen).mean(), rel=1e-5)
    everything = float(entropy(Rule(causal=False), q, q, where, where).compute())
    assert everything == pytest.approx(np.log(64), rel=1e-5)
    windowed = entropy(Rule(window=4), q, q, where, where)
    assert float(windowed.compute()) == pytest.approx(np.log(4), rel=1e-5)
    assert float(windowed.count) == QUERIES


@pytest.mark.exhaustive
def test_a_unit_whose_bias_holds_it_down_is_dead():
    x = jnp.zeros((2, LENGTH, 10)).at[..., 3:].set(1.0).at[..., :2].set(-1.0)
    mean = watch.kept("units", x)
    assert float(mean.compute()) == pytest.approx(0.3)
