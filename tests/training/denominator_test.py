"""Gradients and losses of a weighted batch against the closed form in numpy: what they are sums of,
and divided by."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import text_axes

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import LinearConfig
from bigmodel_jax.objectives import Regression
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.eval_step import make_eval_step
from bigmodel_jax.training.pieces import split
from bigmodel_jax.training.state import init_state, weights
from bigmodel_jax.training.step import make_train_step

ROWS, WIDTH, OUT, LR = 16, 5, 3, 0.5
RNG = np.random.default_rng(0)
# Rows that fill up a batch hold large numbers, and a row counts twice or a half: a wrong divisor
# shows.
WEIGHTS = np.array([1, 0, 2, 1, 0.5, 0, 0, 1, 1, 1, 0, 3, 1, 0, 0, 1], np.float32)
BATCH = {
    "features": np.where(WEIGHTS[:, None] > 0, RNG.standard_normal((ROWS, WIDTH)), 100.0).astype(np.float32),
    "target": RNG.standard_normal((ROWS, OUT)).astype(np.float32),
    "weights": WEIGHTS,
}
CONFIG = Config(
    LinearConfig((WIDTH,), OUT),
    Regression(),
    DataConfig(),
    optim=OptimConfig(name="sgd", lr=LR, betas=(0.0, 0.0), weight_decay=0.0, clip=0.0, schedule="constant"),
    parallel=ParallelConfig(data=1),
    train=TrainConfig(steps=3, batch_size=ROWS),
)


def by_hand(kernel, bias):
    """(loss, gradients) of sum_b w_b mean_k (x_b W + b - y_b)_k^2 / sum_b w_b."""
    x, y, w = BATCH["features"].astype(np.float64), BATCH["target"], WEIGHTS.astype(np.float64)
    error = x @ kernel + bias - y
    loss = (w * (error**2).mean(1)).sum() / w.sum()
    slope = 2 * w[:, None] * error / OUT / w.sum()
    return loss, {"kernel": x.T @ slope, "bias": slope.sum(0)}


CASES = {
    "one device": ({}, 1),
    "microbatches": ({}, 4),
    "eight devices": ({"data": 4, "fsdp": 2}, 1),
    "microbatches on devices": ({"data": 2}, 2),
    "pmap": ({"data": 4, "strategy": "pmap"}, 1),
    "in one order": ({"data": 2, "deterministic": True, "deterministic_groups": 8}, 1),
    "slices": ({"data": 4, "slices": 2, "slice_gradients": "bfloat16"}, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_two_steps_are_the_closed_form(case):
    axes, microbatches = CASES[case]
    train = dataclasses.replace(CONFIG.train, microbatches=microbatches)
    config = dataclasses.replace(CONFIG, parallel=ParallelConfig(**{"data": 1} | axes), train=train)
    mesh = sharding.make_mesh(config.parallel, jax.devices()[: int(np.prod(config.parallel.sizes()))])
    state, step, batch = init_state(config, mesh), make_train_step(config, mesh), BATCH
    if config.parallel.strategy == "jit":
        batch = {
            k: jax.device_put(v, sharding.batch_sharding(mesh, config.parallel.rules, text_axes.axes(v)))
            for k, v in BATCH.items()
        }
    want = {"kernel": np.zeros((WIDTH, OUT)), "bias": np.zeros(OUT)}
    rtol = 2e-2 if case == "slices" else 1e-5  # the sums of slices travel in bfloat16
    for _ in range(2):
        state, sums = step(state, batch)
        loss, grads = by_hand(**want)
        want = {name: w - LR * grads[name] for name, w in want.items()}
        assert float(sums["loss"].compute()) == pytest.approx(loss, rel=rtol)
        assert float(sums["loss"].count) == pytest.approx(WEIGHTS.sum())
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        assert float(sums["grad_norm"].compute()) == pytest.approx(norm, rel=rtol)
        for name, w in want.items():
            np.testing.assert_allclose(state.params[name], w, rtol=rtol, atol=rtol)
    assert int(state.step) == 2


@pytest.mark.parametrize("microbatches", [1, 4])
def test_a_step_whose_weights_are_less_than_one_together_is_the_same(microbatches):
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, microbatches=microbatches))
    mesh, steps = sharding.make_mesh(CONFIG.parallel, jax.devices()[:1]), []
    for weight in (WEIGHTS, WEIGHTS / 64):
        steps.append(make_train_step(config, mesh)(init_state(config, mesh), BATCH | {"weights": weight}))
    assert float(steps[1][1]["loss"].count) < 1
    assert float(steps[1][1]["loss"].compute()) == float(steps[0][1]["loss"].compute())
    jax.tree.map(np.testing.assert_array_equal, steps[1][0].params, steps[0][0].params)


def test_an_evaluation_is_the_closed_form():
    mesh = sharding.make_mesh(CONFIG.parallel, jax.devices()[:1])
    state = init_state(CONFIG, mesh)
    tree = {"kernel": RNG.standard_normal((WIDTH, OUT)).astype(np.float32), "bias": np.ones(OUT, np.float32)}
    sums = make_eval_step(CONFIG, mesh)(weights(state.replace(params=tree)), BATCH)
    loss, _ = by_hand(tree["kernel"].astype(np.float64), tree["bias"])
    scalars = CONFIG.objective.summarize(jax.tree.map(np.asarray, sums))
    assert scalars["loss"] == pytest.approx(loss, rel=1e-5)
    assert scalars["rmse"] == pytest.approx(np.sqrt(loss), rel=1e-5)
    real, y = WEIGHTS[:, None].astype(np.float64), BATCH["target"].astype(np.float64)
    error = BATCH["features"] @ tree["kernel"].astype(np.float64) + 1 - y
    variance = (real * y**2).sum(0) - (real * y).sum(0) ** 2 / real.sum()
    assert scalars["r2"] == pytest.approx(np.mean(1 - (real * error**2).sum(0) / variance), rel=1e-4)


@dataclasses.dataclass(frozen=True)
class Formats(Regression):
    """Regression with one more metric: the number of bits of each value of the kernel."""

    def loss(self, model, params, batch, *, rng, train):
        found = super().loss(model, params, batch, rng=rng, train=train)
        bits = Mean(jnp.float32(8 * params["kernel"].dtype.itemsize), jnp.zeros(()))
        return found._replace(metrics=found.metrics | {"bits": bits})


@pytest.mark.parametrize(("compute", "bits"), [("float32", 32), ("bfloat16", 16)])
def test_training_and_evaluation_compute_in_the_same_format(compute, bits):
    config = dataclasses.replace(CONFIG, objective=Formats(), precision=Policy(compute=compute))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    state = init_state(config, mesh)
    evaluated = make_eval_step(config, mesh)(weights(state), BATCH)
    _, trained = make_train_step(config, mesh)(state, BATCH)
    assert float(evaluated["bits"].total) == float(trained["bits"].total) == bits


def test_a_clipped_step_is_the_limit_long():
    config = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, clip=0.25))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    state, _ = make_train_step(config, mesh)(init_state(config, mesh), BATCH)
    _, grads = by_hand(np.zeros((WIDTH, OUT)), np.zeros(OUT))
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    assert norm > 0.25
    for name, g in grads.items():
        np.testing.assert_allclose(state.params[name], -LR * g * 0.25 / norm, rtol=1e-4, atol=1e-6)


def test_averages_move_by_what_the_decay_leaves():
    config = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, ema_decay=0.75))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    state, step, average = init_state(config, mesh), make_train_step(config, mesh), np.zeros((WIDTH, OUT))
    for _ in range(2):
        state, _ = step(state, BATCH)
        average = 0.75 * average + 0.25 * np.asarray(state.params["kernel"])
    np.testing.assert_allclose(state.ema["kernel"], average, rtol=1e-5)
    np.testing.assert_array_equal(weights(state)["kernel"], state.ema["kernel"])


def test_microbatches_are_every_nth_row():
    np.testing.assert_array_equal(split(np.arange(6), 3), [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(split(np.arange(8).reshape(4, 2), 2)[1], [[2, 3], [6, 7]])
