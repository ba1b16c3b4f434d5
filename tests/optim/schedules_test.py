"""Schedules by name against what they promise, alone and through the rate that a step logs."""

import dataclasses

import jax
import numpy as np
import pytest

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import ImageData
from bigmodel_jax.models import MLPConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.optim import OptimConfig, PlateauConfig
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import make_train_step

SPEC = {"w": params.Param((4, 4), ("embed", "mlp"), params.ones())}


def rates(steps: int = 100, **fields) -> np.ndarray:
    cfg = OptimConfig(lr=2.0, **fields)
    cfg.validate(steps)
    schedule = cfg.schedule_fn(steps)
    return np.array([float(schedule(n)) for n in range(steps + 1)])


def test_wsd_warms_up_stays_and_goes_down_over_its_last_share():
    rate = rates(schedule="wsd", warmup_share=0.1, decay_share=0.2, final_lr_ratio=0.1)
    assert rate[0] == pytest.approx(0.2)
    np.testing.assert_allclose(rate[9:81], 2.0, rtol=1e-6)
    np.testing.assert_allclose(rate[80:], np.linspace(2.0, 0.2, 21), rtol=1e-5)


def test_inverse_square_root_halves_at_four_times_the_warmup_whatever_the_steps():
    rate = rates(schedule="inverse_sqrt", warmup_steps=10)
    np.testing.assert_allclose(rate[[9, 10, 40, 90]], [2.0, 2.0, 1.0, 2.0 / 3], rtol=1e-5)
    np.testing.assert_allclose(rates(300, schedule="inverse_sqrt", warmup_steps=10)[:101], rate)
    np.testing.assert_allclose(rates(schedule="inverse_sqrt")[3], 1.0, rtol=1e-6)


def test_one_cycle_goes_up_and_down_once():
    rate = rates(schedule="one_cycle", final_lr_ratio=0.0)
    assert rate[0] == pytest.approx(2.0 / 25)
    assert rate.argmax() == 30
    assert rate.max() == pytest.approx(2.0)
    assert rate[100] == pytest.approx(0.0, abs=1e-6)
    assert np.all(np.diff(rate[:31]) > 0)
    assert np.all(np.diff(rate[30:]) < 0)
    assert rates(schedule="one_cycle", warmup_share=0.5).argmax() == 50


def test_piecewise_drops_at_shares_of_all_steps():
    rate = rates(schedule="piecewise", warmup_steps=10, drops=((0.5, 0.1), (0.75, 0.5)))
    np.testing.assert_allclose(rate[[9, 49, 50, 74, 75, 100]], [2.0, 2.0, 0.2, 0.2, 0.1, 0.1], rtol=1e-5)


def test_a_share_of_warmup_is_the_count_that_it_comes_to():
    for schedule in ("cosine", "linear", "constant", "wsd", "piecewise", "inverse_sqrt", "one_cycle"):
        np.testing.assert_array_equal(
            rates(schedule=schedule, warmup_share=0.2), rates(schedule=schedule, warmup_steps=20)
        )
    assert rates(3, warmup_share=0.1)[0] == pytest.approx(2.0), (
        "a short trial has no warm-up, and needs no other option"
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"warmup_steps": 5, "warmup_share": 0.1}, "optim.warmup_steps = 5 and optim.warmup_share = 0.1: one of them"),
        ({"schedule": "piecewise", "drops": ((0.7, 0.1), (0.5, 0.1))}, r"optim.drops = .*whose shares rise"),
        ({"schedule": "piecewise", "drops": ()}, r"optim.drops = \(\); it must be pairs"),
    ],
)
def test_fields_that_do_not_fit_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        OptimConfig(**change).validate(100)


def test_the_logged_rate_is_the_one_that_moved_the_weights():
    """With SGD without momentum a weight moves by rate x gradient: the plateau's factor is in the
    rate of its step."""
    plateau = PlateauConfig(factor=0.5, patience=1, window=2)
    cfg = OptimConfig(
        name="sgd", lr=1.0, betas=(0.0, 0.0), weight_decay=0.0, schedule="plateau", plateau=plateau, final_lr_ratio=0.2
    )
    optimizer = cfg.make(SPEC, 100)
    tree = params.init(SPEC, jax.random.key(0))
    grads, state = jax.tree.map(np.ones_like, tree), optimizer.tx.init(tree)
    found = []
    for _ in range(10):
        before = state
        updates, state = optimizer.tx.update(grads, state, tree, grad_norm=np.float32(0), value=np.float32(3.0))
        rate = optimizer.rates(before, state)["learning_rate"]
        np.testing.assert_allclose(updates["w"], -float(rate), rtol=1e-6)
        found.append(round(float(rate), 4))
    # Windows of 2 steps; the first one sets the best value.
    assert found == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2]


@dataclasses.dataclass(frozen=True)
class Halving(OptimConfig):
    """A user's own schedule."""

    every: int = 2

    def schedule_fn(self, total_steps):
        return lambda step: self.lr * 0.5 ** (step // self.every)


def test_a_schedule_of_ones_own_is_used_and_logged():
    train = TrainConfig(steps=5, batch_size=8)
    config = Config(
        MLPConfig.tiny(),
        Classification(),
        ImageData(),
        optim=Halving(lr=0.1),
        train=train,
        parallel=ParallelConfig(data=1),
    )
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    state, step = init_state(config, mesh), make_train_step(config, mesh)
    batch = {
        "image": np.ones((8, 8, 8, 1), np.float32),
        "label": np.zeros(8, np.int32),
        "weights": np.ones(8, np.float32),
    }
    logged = []
    for _ in range(5):
        state, sums = step(state, batch)
        logged.append(float(sums["learning_rate"].compute()))
    np.testing.assert_allclose(logged, [0.1, 0.1, 0.05, 0.05, 0.025], rtol=1e-6)
