"""Schedules and updates against what their formulas say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigmodel_jax import optim
from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.params import Param, normal
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import ImageData
from bigmodel_jax.models import MLPConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.state import init_state, weights
from bigmodel_jax.training.step import make_train_step

SPEC = {
    "matrix": Param((3, 4), ("embed", "mlp"), normal(1.0)),
    "bias": Param((4,), ("mlp",), normal(1.0)),
    "table": Param((2, 3), (None, "embed"), normal(1.0), decay=False),
    "mean": Param((4,), ("mlp",), normal(1.0), trainable=False),
}
TRAINABLE = ("bias", "matrix", "table")


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_schedule_rises_to_the_peak_and_ends_at_its_share(schedule, warmup):
    cfg = OptimConfig(lr=2e-3, warmup_steps=warmup, schedule=schedule, final_lr_ratio=0.1)
    rate = np.array([optim.make_schedule(cfg, 100)(step) for step in range(101)])
    assert rate[0] == pytest.approx(cfg.lr / max(warmup, 1)), "the first step already moves"
    assert rate.max() == pytest.approx(cfg.lr)
    assert rate[max(warmup - 1, 0)] == pytest.approx(cfg.lr), "the peak is the last step of the warm-up"
    assert np.all(np.diff(rate[:warmup]) > 0)
    assert np.all(np.diff(rate[warmup:]) < 0) or schedule == "constant"
    assert rate[100] == pytest.approx(cfg.lr * (1.0 if schedule == "constant" else 0.1))


def test_cosine_and_linear_pass_half_way_through_the_middle():
    for schedule in ("cosine", "linear"):
        cfg = OptimConfig(lr=1.0, warmup_steps=20, schedule=schedule, final_lr_ratio=0.2)
        assert optim.make_schedule(cfg, 100)(60) == pytest.approx(0.6)


def tree(rng) -> dict[str, jax.Array]:
    return {name: jnp.asarray(rng.normal(size=SPEC[name].shape), jnp.float32) for name in TRAINABLE}


def run(cfg: OptimConfig, values, grads):
    """Parameters after one update per gradient."""
    tx = cfg.make(SPEC, total_steps=10).tx
    state = tx.init(values)
    for grad in grads:
        updates, state = tx.update(grad, state, values, grad_norm=jnp.zeros(()))  # which clips nothing
        values = optax.apply_updates(values, updates)
    return values


def test_weight_decay_follows_the_spec():
    """The gradient is zero, so only decay moves a parameter: matrices move, except one that opts
    out. The optimizer has no frozen parameter."""
    values = tree(np.random.default_rng(0))
    still = jax.tree.map(jnp.zeros_like, values)
    for name in ("adamw", "lion", "sgd"):
        cfg = OptimConfig(name=name, lr=0.1, weight_decay=0.5, schedule="constant")
        after = run(cfg, values, [still])
        np.testing.assert_allclose(after["matrix"], 0.95 * values["matrix"], rtol=1e-6)
        np.testing.assert_array_equal(after["bias"], values["bias"])
        np.testing.assert_array_equal(after["table"], values["table"])


def test_adamw_is_the_algorithm_of_the_paper():
    """The reference is algorithm 2 of Loshchilov & Hutter (arXiv:1711.05101) in numpy."""
    rng = np.random.default_rng(1)
    values, grads = tree(rng), [tree(rng) for _ in range(3)]
    cfg = OptimConfig(lr=0.05, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3, warmup_steps=2, schedule="linear")
    schedule = optim.make_schedule(cfg, 10)
    b1, b2 = cfg.betas
    got = run(cfg, values, grads)
    for name in TRAINABLE:
        x, m, v = np.asarray(values[name], np.float64), 0.0, 0.0
        for t, grad in enumerate(grads, 1):
            g = np.asarray(grad[name], np.float64)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            update = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + cfg.eps)
            x = x - float(schedule(t - 1)) * (update + cfg.weight_decay * SPEC[name].decay * x)
        np.testing.assert_allclose(got[name], x, rtol=1e-5, atol=1e-6)


def test_lion_moves_by_signs_and_sgd_by_momentum():
    rng = np.random.default_rng(2)
    values, (first, second) = tree(rng), (tree(rng), tree(rng))
    cfg = OptimConfig(name="lion", lr=0.1, betas=(0.9, 0.99), weight_decay=0, schedule="constant")
    after = run(cfg, values, [first])
    np.testing.assert_allclose(after["bias"], values["bias"] - 0.1 * np.sign(first["bias"]), rtol=1e-6)
    cfg = dataclasses.replace(cfg, name="sgd", betas=(0.5, 0.99))
    after = run(cfg, values, [first, second])
    np.testing.assert_allclose(after["bias"], values["bias"] - 0.1 * (1.5 * first["bias"] + second["bias"]), rtol=1e-5)


@pytest.mark.parametrize(("limit", "expected"), [(0.0, 5.0), (10.0, 5.0), (1.0, 1.0)])
def test_clip_bounds_the_global_norm_and_keeps_the_direction(limit, expected):
    grads = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    clipped = optim.clip(grads, optax.tree.norm(grads), limit)
    assert optax.tree.norm(clipped) == pytest.approx(expected)
    assert clipped["a"][0] / clipped["b"][0, 0] == pytest.approx(0.75)


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
def test_every_optimizer_learns_and_the_average_follows_slowly(name):
    lr = {"adamw": 3e-3, "lion": 3e-3, "sgd": 3e-2}[name]
    config = Config(
        model=MLPConfig.tiny(),
        objective=Classification(),
        data=ImageData(),
        optim=OptimConfig(name=name, lr=lr, ema_decay=0.5, schedule="constant"),
        train=TrainConfig(steps=20, batch_size=32),
        parallel=ParallelConfig(data=1),
    )
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    rng = np.random.default_rng(0)
    image = rng.normal(size=(32, 8, 8, 1)).astype(np.float32)
    batch = {"image": image, "label": np.arange(32, dtype=np.int32) % 10, "weights": np.ones(32, np.float32)}
    state, step = init_state(config, mesh), make_train_step(config, mesh)
    losses, average = [], jax.tree.map(np.asarray, state.params)
    for _ in range(20):
        state, sums = step(state, batch)
        losses.append(float(sums["loss"].compute()))
        average = jax.tree.map(lambda a, p: 0.5 * a + 0.5 * np.asarray(p), average, state.params)
    assert losses[-1] < 0.8 * losses[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), weights(state), average)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lr": -1.0}, "optim.lr = -1.0"),
        ({"clip": -1.0}, "optim.clip = -1.0"),
        ({"warmup_steps": 11}, "optim.warmup_steps = 11 is more than train.steps = 10"),
        ({"betas": (0.9, 1.0)}, "optim.betas = 1.0"),
        ({"ema_decay": 1.0}, "optim.ema_decay = 1.0"),
    ],
)
def test_impossible_values_are_refused(change, says):
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        OptimConfig(**change).validate(10)
