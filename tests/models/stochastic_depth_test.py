"""Stochastic depth: how often layers are left out, that nothing changes on average, and outside
training not at all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import LlamaConfig, MLPConfig
from bigmodel_jax.objectives import Classification, NextToken

RATE = 0.6
BATCH = {"tokens": jnp.asarray(np.arange(8, dtype=np.int32)[None])}


def model(rate: float, cfg=LlamaConfig.tiny(), objective=NextToken()):
    return Config(cfg, objective, DataConfig(), train=TrainConfig(stochastic_depth=rate)).make_model()


def weights():
    return params.init(model(0.0).spec, jax.random.key(0))


def test_the_model_itself_where_nothing_is_left_out():
    with_it, without = model(RATE), model(0.0)
    rows = [m.apply(weights(), BATCH).value for m in (with_it, without)]
    np.testing.assert_array_equal(*rows)
    assert with_it.spec == without.spec


def test_layers_are_left_out_as_often_as_declared_and_weigh_more_in_turn():
    """The first of two layers is left out in 30 % of the steps, and the last in 60 %."""
    enter, tree = model(RATE).apply.enter, weights()
    outside = {name: part for name, part in tree.items() if name != "layers"}
    draw = jax.jit(jax.vmap(lambda key: enter(outside, BATCH, rng=key, train=True, cache=None).xs[1]))
    kept = np.asarray(draw(jax.random.split(jax.random.key(1), 4000)))
    np.testing.assert_allclose((kept == 0).mean(axis=0), [0.3, 0.6], atol=0.03)
    np.testing.assert_allclose(kept.mean(axis=0), 1.0, atol=0.05)


def test_a_step_without_layers_gives_the_embeddings_alone():
    apply, tree = model(RATE).apply, weights()
    keys = jax.random.split(jax.random.key(2), 32)
    outside = {k: v for k, v in tree.items() if k != "layers"}
    kept = [np.asarray(apply.enter(outside, BATCH, rng=key, train=True, cache=None).xs[1]) for key in keys]
    key = next(key for key, k in zip(keys, kept, strict=True) if not k.any())
    got = apply(tree, BATCH, rng=key, train=True).value
    bare = tree | {"layers": jax.tree.map(jnp.zeros_like, tree["layers"])}
    np.testing.assert_allclose(got, model(0.0).apply(bare, BATCH).value, rtol=1e-5, atol=1e-6)


def test_a_model_without_a_stack_has_none():
    with pytest.raises(ValueError, match=r"train.stochastic_depth = 0.6: the model declares no stack of layers"):
        model(RATE, MLPConfig.tiny(), Classification())


def test_a_layer_that_is_left_out_has_no_gradient():
    cfg = dataclasses.replace(LlamaConfig.tiny(), num_layers=1)
    one, tree = model(0.9, cfg), params.init(model(0.0, cfg).spec, jax.random.key(0))

    @jax.jit
    def gradient(key):
        return jax.grad(lambda p: one.apply(p, BATCH, rng=key, train=True).value.sum())(tree)["layers"]["attn"]["q"]

    moved = [bool(jnp.any(gradient(key))) for key in jax.random.split(jax.random.key(3), 60)]
    assert 0 < sum(moved) < 20
