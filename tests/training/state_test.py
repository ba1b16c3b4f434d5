"""The train state: a function of the config alone, and where its leaves lie."""

import dataclasses
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import ImageData, TextData
from bigmodel_jax.models import CNNConfig, LlamaConfig
from bigmodel_jax.objectives import Classification, NextToken
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.optim.optimizer import state_like
from bigmodel_jax.training.state import (
    abstract_state,
    check_host_memory,
    init_state,
    state_shardings,
    weights,
)
from bigmodel_jax.training.step import make_train_step

LLAMA = Config(LlamaConfig.tiny(), NextToken(), TextData(), parallel=ParallelConfig(data=2, fsdp=2, tensor=2))
CNN = dataclasses.replace(LLAMA, model=CNNConfig.tiny(), objective=Classification(), data=ImageData())


@pytest.fixture(scope="module", params=[LLAMA, CNN], ids=["llama", "cnn"])
def made(request):
    config = dataclasses.replace(request.param, optim=OptimConfig(ema_decay=0.9))
    mesh = sharding.make_mesh(config.parallel)
    return config, mesh, init_state(config, mesh)


@pytest.mark.slow
def test_abstract_state_is_the_state_without_its_values(made):
    config, mesh, state = made

    def same(abstract, array):
        assert (abstract.shape, abstract.dtype) == (array.shape, array.dtype)
        assert abstract.sharding.is_equivalent_to(array.sharding, array.ndim)

    jax.tree.map(same, abstract_state(config, mesh), state)


def test_moments_and_averages_lie_where_their_parameters_do(made):
    _, _, state = made
    adam = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(s, "mu"))
    for moments in (adam.mu, adam.nu, state.ema):
        jax.tree.map(
            lambda m, p: m.sharding.is_equivalent_to(p.sharding, p.ndim) or pytest.fail(str(p.shape)),
            moments,
            state.params,
        )
    assert any(not p.sharding.is_fully_replicated for p in jax.tree.leaves(state.params)), "nothing is sharded"


def test_trainable_and_frozen_follow_the_spec(made):
    config, _, state = made
    spec = params.paths(config.model.make().spec)
    assert set(params.paths(state.params)) == {path for path, p in spec.items() if p.trainable}
    assert set(params.paths(state.frozen)) == {path for path, p in spec.items() if not p.trainable}


def test_the_average_starts_as_a_copy_and_is_what_an_evaluation_uses(made):
    _, _, state = made
    chex.assert_trees_all_equal(state.ema, state.params)
    moved = state.replace(ema=jax.tree.map(lambda x: x + 1, state.ema))
    merged = params.paths(weights(moved))
    for path, value in params.paths(state.params).items():
        np.testing.assert_array_equal(merged[path], value + 1)
    assert set(merged) == set(params.paths(state.params)) | set(params.paths(state.frozen))


@pytest.mark.slow
def test_the_state_is_a_function_of_the_seed_on_any_mesh(made):
    config, _, state = made
    alone = dataclasses.replace(config, parallel=ParallelConfig(data=1))
    mesh = sharding.make_mesh(alone.parallel, jax.devices()[:1])
    chex.assert_trees_all_equal(init_state(alone, mesh), state)
    other = init_state(dataclasses.replace(alone, train=TrainConfig(seed=1)), mesh)
    pairs = zip(jax.tree.leaves(other.params), jax.tree.leaves(state.params), strict=True)
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs)


def test_precision_param_is_the_dtype_of_the_master_weights():
    config = dataclasses.replace(CNN, precision=Policy(param="bfloat16"))
    abstract = abstract_state(config, sharding.make_mesh(config.parallel))
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract.params)} == {jnp.bfloat16.dtype}
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract.frozen)} == {jnp.float32.dtype}, "statistics stay float32"


def test_pmap_keeps_everything_whole():
    config = dataclasses.replace(CNN, parallel=ParallelConfig(strategy="pmap"))
    shardings = state_shardings(config, sharding.make_mesh(config.parallel))
    assert all(s.is_fully_replicated for s in jax.tree.leaves(shardings))


def test_a_leaf_of_another_shape_than_its_parameter_is_whole():
    """Factored moments (Adafactor) have the parameter's path and not its shape."""
    mesh = sharding.make_mesh(ParallelConfig(fsdp=8, data=1))
    spec = {"w": params.Param((256, 256), ("embed", None), params.normal(1.0))}
    where, whole = sharding.shardings(spec, mesh, sharding.Rules()), sharding.replicated(mesh)
    shapes = params.abstract(spec)
    tx = optax.adafactor(1e-3)
    state = jax.eval_shape(tx.init, shapes)
    placed = state_like(tx, state, shapes, where, whole)

    def check(leaf, sharding_):
        assert sharding_ == (where["w"] if leaf.shape == (256, 256) else whole)

    jax.tree.map(check, state, placed)


# ----------------------------------------------------------------------------- in the host's memory


def moments(state):
    return [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]


@pytest.mark.slow
@pytest.mark.few("mesh")
@pytest.mark.parametrize(
    "parallel", [ParallelConfig(data=1), ParallelConfig(data=2, fsdp=2, tensor=2)], ids=["one", "mesh"]
)
def test_an_offloaded_optimizer_takes_the_same_steps(parallel):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 64, (8, 17)).astype(np.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((8, 16), np.float32)}
    states = []
    for offload in (False, True):
        config = dataclasses.replace(LLAMA, parallel=dataclasses.replace(parallel, offload_optimizer=offload))
        mesh = sharding.make_mesh(config.parallel, jax.devices()[: 8 if parallel.tensor > 1 else 1])
        state, step = init_state(config, mesh), make_train_step(config, mesh)
        for _ in range(3):
            assert {leaf.sharding.memory_kind for leaf in moments(state)} == {"pinned_host" if offload else "device"}
            assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.params)} == {"device"}
            state, _ = step(state, batch)
        states.append(sharding.to_host(state))
    chex.assert_trees_all_equal(*states)


def test_a_device_without_its_hosts_memory_is_refused_in_one_line():
    device = types.SimpleNamespace(
        device_kind="Toaster", addressable_memories=lambda: [types.SimpleNamespace(kind="device")]
    )
    with pytest.raises(ValueError, match=r"offload_optimizer = True: Toaster .* 'pinned_host' \(it has device\)$"):
        check_host_memory(device)


def test_offloading_needs_jit():
    config = dataclasses.replace(CNN, parallel=ParallelConfig(strategy="pmap", offload_optimizer=True))
    with pytest.raises(ValueError, match=r"parallel.offload_optimizer = True needs parallel.strategy = 'jit'$"):
        validate(config, 8)
