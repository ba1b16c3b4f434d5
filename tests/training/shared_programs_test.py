import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.config import Config, TrainConfig, replaced
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import ImageData, Tfds
from bigmodel_jax.data.sources.fold import HeldOutFold
from bigmodel_jax.models import MLPConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.shared_programs import OwnPrograms, SharedPrograms, traceable
from bigmodel_jax.training.state import init_state

CONFIG = Config(
    dataclasses.replace(MLPConfig.tiny(), dropout=0.3),
    Classification(),
    ImageData(),
    optim=OptimConfig(lr=1e-2, warmup_steps=2, ema_decay=0.5),
    parallel=ParallelConfig(data=1),
    train=TrainConfig(steps=6, batch_size=8),
)
FIELDS = ("optim.lr", "optim.weight_decay", "train.seed")
RNG = np.random.default_rng(0)
BATCH = {
    "image": jnp.asarray(np.float32(RNG.normal(size=(8, 8, 8, 1)))),
    "label": jnp.asarray(np.arange(8, dtype=np.int32)),
    "weights": jnp.asarray(np.ones(8, np.float32)),
}


def after(programs, config, steps=3):
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    state = init_state(config, mesh)
    step = programs.programs(config, mesh, state, BATCH, {}).step
    for _ in range(steps):
        state, sums = step(state, BATCH, {})
    return jax.device_get((state.params, {name: mean.compute() for name, mean in sums.items()}))


@pytest.mark.slow
def test_one_step_serves_other_rates_decays_and_seeds_and_computes_what_their_own_would():
    shared = SharedPrograms(FIELDS)
    for changes in ({}, {"optim.lr": 3e-2, "optim.weight_decay": 0.0}, {"train.seed": 7, "optim.weight_decay": 0.5}):
        config = CONFIG
        for name, value in changes.items():
            config = replaced(config, name, value)
        (weights, sums), (own_weights, own_sums) = after(shared, config), after(OwnPrograms(), config)
        # Rates are multiplied in float32 by the step, and in float64 by Python where they are
        # constants.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), weights, own_weights)
        assert sums["learning_rate"] == pytest.approx(own_sums["learning_rate"], rel=1e-6)
    assert shared.compiled == 1


@pytest.mark.slow
def test_another_shape_has_a_step_of_its_own():
    shared = SharedPrograms(FIELDS)
    for width in (8, 16):
        after(shared, replaced(CONFIG, "model.hidden_dims", (width,)), steps=1)
    assert shared.compiled == 2


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("adamw", ("optim.lr", "optim.weight_decay")),
        ("muon", ("optim.lr", "optim.weight_decay")),
        ("sgd", ("optim.lr", "optim.weight_decay")),
        ("rmsprop", ("optim.lr",)),  # Python asks whether its decay is 0
    ],
)
def test_a_field_that_python_branches_on_stays_a_constant(name, found):
    config = replaced(CONFIG, "optim.name", name)
    assert (
        traceable(config, ("optim.lr", "optim.weight_decay", "optim.clip", "optim.ema_decay", "data.max_shift"))
        == found
    )


@pytest.mark.parametrize(
    "schedule", ["cosine", "linear", "constant", "wsd", "inverse_sqrt", "piecewise", "plateau", "one_cycle"]
)
def test_the_rate_of_every_schedule_may_be_a_number_of_the_step(schedule):
    config = replaced(CONFIG, "optim.schedule", schedule)
    assert traceable(config, ("optim.lr",)) == ("optim.lr",)


@pytest.mark.slow
def test_a_field_that_no_program_reads_shares_them_for_rows_of_one_shape():
    """Which rows are held out changes no program; rows that are longer have one of their own."""
    programs = SharedPrograms((), unread=("data.source.fold",))
    folds = [
        replaced(CONFIG, "data", dataclasses.replace(CONFIG.data, source=HeldOutFold(Tfds("digits"), 3, n)))
        for n in (0, 1)
    ]
    for config in folds:
        after(programs, config, steps=1)
    assert programs.compiled == 1
    mesh = sharding.make_mesh(CONFIG.parallel, jax.devices()[:1])
    longer = jax.tree.map(lambda x: jnp.concatenate([x, x]), BATCH)
    programs.programs(folds[0], mesh, init_state(folds[0], mesh), longer, {})
    assert programs.compiled == 2
    after(programs, replaced(folds[1], "data.source.k", 4), steps=1)
    assert programs.compiled == 3, "another field of the data is another program"
