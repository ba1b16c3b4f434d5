"""Random numbers over time: a key is used once, and the next step, microbatch, device and layer has
another one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from text_axes import axes

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import LinearConfig
from bigmodel_jax.nn import stack
from bigmodel_jax.objectives import Objective
from bigmodel_jax.objectives.base import Loss
from bigmodel_jax.training.eval_step import make_eval_step
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import accumulate, make_train_step, train_step

ROWS = 16


@dataclasses.dataclass(frozen=True)
class Draws(Objective):
    """A loss that also reports what its key draws, at the place of the first row that it is
    given."""

    def loss(self, model, params, batch, *, rng, train) -> Loss:
        out = model.apply(params, batch).value
        place = jax.nn.one_hot(batch["number"].min(), ROWS)
        draw = jnp.zeros(()) if rng is None else 1.0 + jax.random.uniform(rng)
        mean = Mean(jnp.sum(out), jnp.float32(len(out)))
        return Loss(mean, {"loss": mean, "draws": Mean(place * draw, jnp.zeros(()))}, {})


CONFIG = Config(
    LinearConfig.tiny(),
    Draws(),
    DataConfig(),
    parallel=ParallelConfig(data=1),
    train=TrainConfig(steps=4, batch_size=ROWS),
)
BATCH = {"features": np.ones((ROWS, 16), np.float32), "number": np.arange(ROWS, dtype=np.int32)}


def draws(config: Config, steps: int = 2, start: int = 0) -> np.ndarray:
    """The draws of every call of the loss in these steps."""
    devices = jax.devices()[: int(np.prod(config.parallel.sizes()))]
    mesh = sharding.make_mesh(config.parallel, devices)
    step, state = make_train_step(config, mesh), init_state(config, mesh)
    state = state.replace(step=state.step + start)
    batch = BATCH
    if config.parallel.strategy == "jit":
        rules = config.parallel.rules
        batch = {k: jax.device_put(v, sharding.batch_sharding(mesh, rules, axes(v))) for k, v in BATCH.items()}
    found = []
    for _ in range(steps):
        state, sums = step(state, batch)
        found += [x for x in np.asarray(sums["draws"].total).tolist() if x]
    return np.array(found)


def config_of(parallel: ParallelConfig = CONFIG.parallel, microbatches: int = 1, seed: int = 0) -> Config:
    train = dataclasses.replace(CONFIG.train, microbatches=microbatches, seed=seed)
    return dataclasses.replace(CONFIG, parallel=parallel, train=train)


CALLS = {
    "steps": (config_of(), 1),
    "microbatches": (config_of(microbatches=4), 4),
    "pmap's devices": (config_of(ParallelConfig(data=4, strategy="pmap")), 4),
    "slices": (config_of(ParallelConfig(data=4, slices=2, slice_gradients="bfloat16")), 2),
    "groups of an order": (config_of(ParallelConfig(data=2, deterministic=True, deterministic_groups=8)), 8),
}


@pytest.mark.parametrize("kind", CALLS)
def test_no_key_is_used_twice(kind):
    config, calls = CALLS[kind]
    found = draws(config, steps=3)
    assert len(found) == 3 * calls
    assert len(set(found.tolist())) == 3 * calls


def test_a_key_is_a_function_of_seed_and_step():
    first = draws(CONFIG, steps=3)
    np.testing.assert_array_equal(draws(CONFIG, steps=1, start=2), first[2:])
    assert not set(draws(config_of(seed=1), steps=3).tolist()) & set(first.tolist())
    key = jax.random.fold_in(jax.random.key(0), 2)
    np.testing.assert_array_equal(np.float32(first[2]), 1.0 + jax.random.uniform(key))


def test_an_evaluation_has_no_key():
    mesh = sharding.make_mesh(CONFIG.parallel, jax.devices()[:1])
    sums = make_eval_step(CONFIG, mesh)(init_state(CONFIG, mesh).params, BATCH)
    assert not np.asarray(sums["draws"].total).any()


PIECES = {
    "two stages": ParallelConfig(stage=2, data=1, pipeline_microbatches=4),
    "two rounds": ParallelConfig(stage=2, data=1, pipeline_microbatches=2, pipeline_rounds=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", PIECES)
def test_every_piece_of_a_pipeline_draws_anew_in_every_layer(case):
    """ys are sums over pieces, so each layer writes what it draws at the place of the piece's first
    row."""
    parallel, layers, rows = PIECES[case], 4, 8
    pieces = parallel.pipeline_microbatches

    def block(p, x, key, number):
        return x + p, jax.nn.one_hot(number.min(), rows) * (1.0 + jax.random.uniform(key))

    mesh = sharding.make_mesh(parallel, jax.devices()[:2])

    @jax.jit
    def run():
        with sharding.use(mesh, Rules(), parallel):
            keys = jax.random.split(jax.random.key(0), layers)
            return stack.run(block, jnp.ones(layers), jnp.zeros((rows, 1)), keys, shared=(jnp.arange(rows),))

    x, ys = run()
    np.testing.assert_array_equal(x, np.full((rows, 1), layers))
    found = np.asarray(ys)[np.asarray(ys) > 0]
    assert np.asarray(ys).shape == (layers, rows)
    assert ((np.asarray(ys) > 0).sum(1) == pieces).all()
    assert len(set(found.tolist())) == layers * pieces


@pytest.mark.slow
def test_a_finite_loss_with_a_gradient_that_is_not_is_skipped():
    """The test tries both forms of the skip (`cond` and select), and also a loss that is not finite
    with a finite gradient."""
    model = CONFIG.model.make()
    optimizer = CONFIG.optim.make(model.spec, 4)
    state = init_state(CONFIG, sharding.make_mesh(CONFIG.parallel, jax.devices()[:1]))
    before = sharding.to_host(state)

    def gradients(gradient, total):
        def of(compute, frozen, batch, rng, constants):
            grads, mean, sums, frozen = accumulate(CONFIG, CONFIG.model.make(), compute, frozen, batch, rng)
            grads = grads | {"bias": grads["bias"].at[0].set(gradient)}
            return grads, Mean(jnp.float32(total), mean.count), sums, frozen

        return of

    for branch in (True, False):
        for gradient, total, skipped in [(np.inf, 1.0, 1), (np.nan, 1.0, 1), (1.0, np.nan, 1), (1.0, 1.0, 0)]:
            step = functools.partial(train_step, CONFIG, model, optimizer, gradients(gradient, total), branch=branch)
            after, sums = jax.jit(step)(before, BATCH)
            assert float(sums["skipped_steps"].total) == skipped
            assert int(after.step) == 1
            same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), after.params, before.params)
            assert jax.tree.all(same) == bool(skipped)
