"""Weights stored in bfloat16: the step works, averages move, and what rounding loses is
measured."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import sharding
from bigmodel_jax.core.precision import Policy, round_stochastic
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.state import init_state
from step_test import CONFIG, compiled, one_device, text_batch

BFLOAT16 = dataclasses.replace(CONFIG, precision=Policy(param="bfloat16"))


def run(config, steps, state=None):
    state, step = init_state(config, one_device()) if state is None else state, compiled(config)
    for i in range(int(state.step), steps):
        state, sums = step(state, text_batch(i % 3))
    return sharding.to_host(state), sums


def dtypes(tree):
    return {str(x.dtype) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)}


def check_dtypes(state):
    assert dtypes(state.params) == {"bfloat16"}
    assert dtypes(state.opt_state) == {"float32"}
    assert dtypes(state.ema) == {"float32"}


@pytest.mark.exhaustive  # the next test has those of adamw
@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
def test_weights_stay_bfloat16_and_moments_and_averages_float32(name):
    optim = OptimConfig(name=name, lr=1e-2, ema_decay=0.9)
    check_dtypes(run(dataclasses.replace(BFLOAT16, optim=optim), 2)[0])


@pytest.mark.slow
def test_an_average_of_bfloat16_weights_moves():
    """An average kept in bfloat16 would not move: a thousandth of the difference is below half a
    step."""
    optim = OptimConfig(lr=1e-2, ema_decay=0.999, schedule="constant")
    start, _ = run(dataclasses.replace(BFLOAT16, optim=optim), 1)
    end, _ = run(dataclasses.replace(BFLOAT16, optim=optim), 20)
    check_dtypes(end)
    moved = [np.mean(a != b) for a, b in zip(*map(jax.tree.leaves, (start.ema, end.ema)), strict=True)]
    assert min(moved) > 0.9, moved


@pytest.mark.exhaustive  # docs/results.md has these shares for a run
def test_a_small_rate_loses_updates_by_rounding_to_the_nearest_and_few_by_chance():
    small = dataclasses.replace(BFLOAT16, optim=OptimConfig(lr=1e-5, weight_decay=0.0, schedule="constant"))
    by_chance = dataclasses.replace(small, precision=Policy(param="bfloat16", rounding="stochastic"))
    start, _ = run(small, 1)
    share = {}
    for name, config in (("nearest", small), ("stochastic", by_chance)):
        state, sums = run(config, 30)
        share[name] = float(sums["lost_updates"].compute())
        pairs = zip(*map(jax.tree.leaves, (start.params, state.params)), strict=True)
        share[f"{name} moved"] = np.mean(np.concatenate([(a != b).ravel() for a, b in pairs]))
    assert share["nearest"] > 0.8, share
    assert share["stochastic moved"] > 2 * share["nearest moved"], share


def test_the_share_of_lost_updates_counts_by_hand():
    """Plain SGD with rate 1 gives w - g, for weights whose bfloat16 neighbours are known."""
    from bigmodel_jax.core import precision

    old = {"w": jnp.asarray([1.0, 1.0, 1.0, 2.0], jnp.bfloat16)}
    new = {"w": jnp.asarray([1.0, 1.0 + 2**-10, 1.0 + 2**-7, 2.0 + 2**-9], jnp.float32)}
    rounded, lost = precision.store(new, old, Policy(param="bfloat16"), jax.random.key(0))
    np.testing.assert_array_equal(rounded["w"].astype(np.float32), np.float32([1.0, 1.0, 1.0 + 2**-7, 2.0]))
    assert (float(lost["lost_updates"].total), float(lost["lost_updates"].count)) == (2.0, 3.0)


def test_stochastic_rounding_gives_the_neighbours_with_the_right_mean():
    x = jnp.full((200_000,), 1.0 + 2**-7 * 0.3, jnp.float32)
    y = np.asarray(round_stochastic(x, jax.random.key(0)), np.float64)
    assert set(y) == {1.0, 1.0 + 2**-7}
    np.testing.assert_allclose((y - 1.0).mean() / 2**-7, 0.3, atol=0.005)


def test_stochastic_rounding_keeps_what_bfloat16_holds():
    x = jnp.asarray([0.0, -0.0, 1.5, -2.0, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    np.testing.assert_array_equal(round_stochastic(x, jax.random.key(1)).astype(jnp.float32), x)


@pytest.mark.slow
def test_rounding_by_chance_is_the_same_after_a_restart():
    config = dataclasses.replace(BFLOAT16, precision=Policy(param="bfloat16", rounding="stochastic"))
    whole, _ = run(config, 6)
    first, _ = run(config, 3)
    again, _ = run(config, 6, jax.device_put(first))
    jax.tree.map(np.testing.assert_array_equal, whole, again)


def test_parameters_are_rounded_by_draws_of_their_own():
    key, x = jax.random.key(0), jnp.full((64,), 1.0 + 2**-8, jnp.float32)
    from bigmodel_jax.core import precision

    policy, old = Policy(param="bfloat16", rounding="stochastic"), {n: x.astype(jnp.bfloat16) for n in "ab"}
    a, b = (precision.store({n: x for n in "ab"}, old, policy, key)[0][n] for n in "ab")
    assert (a != b).any()
    other = precision.store({n: x for n in "ab"}, old, policy, jax.random.key(1))[0]["a"]
    assert (a != other).any()


@pytest.mark.slow
def test_a_select_and_a_branch_agree_in_bfloat16():
    import functools

    from bigmodel_jax.training.step import accumulate, train_step

    model = BFLOAT16.model.make()
    optimizer = BFLOAT16.optim.make(model.spec, BFLOAT16.train.steps)
    step = functools.partial(train_step, BFLOAT16, model, optimizer, functools.partial(accumulate, BFLOAT16, model))
    state = sharding.to_host(init_state(BFLOAT16, one_device()))
    both = [jax.eval_shape(functools.partial(step, branch=b), state, text_batch()) for b in (True, False)]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), both[0]) == jax.tree.map(lambda x: (x.shape, x.dtype), both[1])
