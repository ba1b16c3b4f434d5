"""Small trainings of one optimizer: at several rates at once, and on one device, on eight, and
resumed."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
import optax

from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import ImageData, TextData, TextFiles
from bigmodel_jax.models import LlamaConfig, MLPConfig
from bigmodel_jax.objectives import Classification, NextToken
from bigmodel_jax.optim import OptimConfig, PlateauConfig
from bigmodel_jax.training.state import abstract_state, init_state
from bigmodel_jax.training.step import make_train_step

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
STEPS = {"digits": 200, "decoder": 200}  # `dog` begins at a rate of 1e-6
LAST = 20  # steps at the end, over whose losses a training is judged
TASKS = {
    "digits": Config(MLPConfig.tiny(), Classification(), ImageData()),
    "decoder": Config(LlamaConfig.tiny(), NextToken(), TextData(source=TextFiles("a", "b"))),
}


def optim_of(name: str = "adamw", schedule: str = "constant", **fields) -> OptimConfig:
    """Without weight decay, of which a rule whose rate is about 1 would have too much; a plateau
    has windows that these few steps have room for."""
    plateau = PlateauConfig(window=5, patience=2)
    return OptimConfig(name=name, schedule=schedule, plateau=plateau, weight_decay=0.0, **fields)


@functools.cache
def batches(task: str) -> dict[str, np.ndarray]:
    """(steps, rows, ...): 1,797 written digits, drawn anew for each batch; or a chain of 64 tokens,
    each followed by one of four, so that log 4 = 1.386 nats is the least loss."""
    rng = np.random.default_rng(0)
    if task == "digits":
        from sklearn.datasets import load_digits  # not when tests are collected: it takes long

        images, labels = load_digits(return_X_y=True)
        chosen = rng.integers(0, len(images), (STEPS[task], 64))
        image = (images[chosen] / 8.0 - 1.0).reshape(*chosen.shape, 8, 8, 1).astype(np.float32)
        return {"image": image, "label": labels[chosen].astype(np.int32), "weights": np.ones(chosen.shape, np.float32)}
    follows, tokens = rng.integers(0, 64, (64, 4)), np.zeros((STEPS[task], 8, 17), np.int32)
    tokens[..., 0] = rng.integers(0, 64, tokens.shape[:2])
    for t in range(16):
        tokens[..., t + 1] = follows[tokens[..., t], rng.integers(0, 4, tokens.shape[:2])]
    ones = np.ones((STEPS[task], 8, 16), np.float32)
    return {"tokens": tokens[..., :-1], "targets": tokens[..., 1:], "weights": ones}


def losses(task: str, optim: OptimConfig, rates: Sequence = RATES) -> np.ndarray:
    """(rates, steps) float32, in one compiled program: the rate is an argument of it. A row of
    `rates` may have a rate for each step."""
    config, model = TASKS[task], TASKS[task].make_model()

    def loss(weights, batch):
        mean = config.objective.loss(model, weights, batch, rng=None, train=True).mean
        return mean.total / mean.count

    def rule(rate):
        return dataclasses.replace(optim, lr=rate).make(model.spec, STEPS[task]).tx

    def train(rates):
        def step(carry, given):
            (weights, state), (rate, batch) = carry, given
            value, grads = jax.value_and_grad(loss)(weights, batch)
            updates, state = rule(rate).update(grads, state, weights, grad_norm=optax.tree.norm(grads), value=value)
            return (optax.apply_updates(weights, updates), state), value

        weights = params.init(model.spec, jax.random.key(0))
        given = rates, {name: x[: len(rates)] for name, x in batches(task).items()}
        return jax.lax.scan(step, (weights, rule(rates[0]).init(weights)), given)[1]

    rates = np.array(rates, np.float32)
    by_step = rates if rates.ndim == 2 else np.repeat(rates[:, None], STEPS[task], axis=1)
    return np.asarray(jax.jit(lambda rates: jax.lax.map(train, rates))(by_step))


def best(task: str, optim: OptimConfig) -> tuple[float, float, float]:
    """(the best rate, the first step's loss, the mean over the last steps at that rate)."""
    found = losses(task, optim)
    ends = np.nan_to_num(found[:, -LAST:].mean(axis=1), nan=np.inf)
    n = int(ends.argmin())
    return RATES[n], float(found[n, 0]), float(ends[n])


def run(task: str, optim: OptimConfig, parallel: ParallelConfig, folder, steps: int = 4) -> dict[str, np.ndarray]:
    """The parameters after some steps, by path. A run that goes on from a save in the middle has
    the same state, bit for bit."""
    config = dataclasses.replace(
        TASKS[task], optim=optim, parallel=parallel, train=TrainConfig(steps=STEPS[task], batch_size=8)
    )
    mesh = sharding.make_mesh(parallel, jax.devices()[: parallel.fsdp])
    state, step = init_state(config, mesh), make_train_step(config, mesh)
    for n in range(steps):
        state, _ = step(state, {name: x[n] for name, x in batches(task).items()})
        if n + 1 == steps // 2:
            with store.open_store(folder, config.checkpoint) as saves:
                store.save(saves, n + 1, state, {}, {})
    with store.open_store(folder, config.checkpoint) as saves:
        again = store.restore(saves, abstract_state(config, mesh)).state
    for n in range(steps // 2, steps):
        again, _ = step(again, {name: x[n] for name, x in batches(task).items()})
    jax.tree.map(np.testing.assert_array_equal, sharding.to_host(again), sharding.to_host(state))
    return params.paths(sharding.to_host(state.params))
