"""Every optimizer that ships: it learns, its state lies on the mesh like the parameters, and a save
brings it back."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import ImageData, TextData, TextFiles
from bigmodel_jax.models import MODELS, LlamaConfig, MLPConfig
from bigmodel_jax.objectives import Classification, NextToken
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.optim.muon import dimensions
from bigmodel_jax.optim.names import OPTIMIZERS, arguments
from bigmodel_jax.training.state import abstract_state, init_state, weights, with_weights
from bigmodel_jax.training.step import make_train_step

FSDP = ParallelConfig(data=1, fsdp=8)
LLAMA = Config(LlamaConfig.tiny(), NextToken(), TextData(source=TextFiles("a", "b")), parallel=FSDP)
# Where to start from: rules that move by a norm or a sign, or that find their own rate.
RATES = {
    **dict.fromkeys(("sgd", "optimistic_gradient_descent", "noisy_sgd", "adafactor", "adagrad", "sm3"), 5e-2),
    **dict.fromkeys(("lion", "sign_sgd", "signum", "adabelief", "fromage", "madgrad"), 3e-3),
    **dict.fromkeys(("polyak_sgd", "cocob", "dadapt_adamw", "dog", "dowg", "momo", "prodigy", "lars"), 1.0),
    **dict.fromkeys(("adadelta", "schedule_free_sgd"), 1.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_moment_lies_like_its_parameter(name):
    """A moment that is whole on each device costs what FSDP saves, and nothing else shows it."""
    state = abstract_state(dataclasses.replace(LLAMA, optim=OptimConfig(name=name)), sharding.make_mesh(FSDP))
    own = {path: (p.shape, p.sharding) for path, p in params.paths(state.params).items()}
    found = 0
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        names = [str(k.key) for k in keys if isinstance(k, jax.tree_util.DictKey)]
        mine = [own[p] for p in ("/".join(names[n:]) for n in range(len(names))) if p in own]
        if mine and mine[0][0] == leaf.shape:
            assert leaf.sharding == mine[0][1], jax.tree_util.keystr(keys)
            found += 1
        elif name != "adafactor":  # which keeps sums over rows and columns
            assert leaf.ndim < 2, f"{jax.tree_util.keystr(keys)} has a shape of its own: {leaf.shape}"
    without_moments = {"adafactor", "fromage", "noisy_sgd", "sign_sgd", "polyak_sgd"}
    assert found >= (0 if name in without_moments else len(own) - 1)


STEPS = {"dog": 200, "prodigy": 80}  # which begin with a rate of 1e-6


def batch() -> dict:
    image = np.random.default_rng(0).normal(size=(32, 8, 8, 1)).astype(np.float32)
    return {"image": image, "label": np.arange(32, dtype=np.int32) % 10, "weights": np.ones(32, np.float32)}


def learns_and_comes_back(config: Config, folder, data: dict) -> None:
    mesh = sharding.make_mesh(config.parallel)
    state, step = init_state(config, mesh), make_train_step(config, mesh)
    losses, steps = [], config.train.steps
    for n in range(steps):
        state, sums = step(state, data)
        losses.append(float(sums["loss"].compute()))
        assert float(sums["learning_rate"].compute()) == pytest.approx(config.optim.lr)
        if n == steps - 2:
            with store.open_store(folder, config.checkpoint) as saves:
                store.save(saves, n + 1, state, {}, {})
            kept = jax.tree.map(np.asarray, state)
    assert losses[-1] < 0.9 * losses[0], losses
    with store.open_store(folder, config.checkpoint) as saves:
        back = store.restore(saves, abstract_state(config, mesh)).state
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, np.asarray(y)), kept, back)
    again, _ = step(back, data)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), again, state)


QUICK = {"muon", "noisy_sgd"}
# Each of these two keeps another kind of state: sums over rows, and an average of the weights.
SLOW = {"adafactor", "schedule_free_adamw"}


def marks(name: str) -> tuple:
    return () if name in QUICK else (pytest.mark.slow if name in SLOW else pytest.mark.exhaustive,)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=marks(n)) for n in OPTIMIZERS])
def test_an_optimizer_learns_and_its_state_comes_back_bit_for_bit(name, tmp_path):
    optim = OptimConfig(name=name, lr=RATES.get(name, 1e-2), schedule="constant", weight_decay=1e-4)
    train = TrainConfig(steps=STEPS.get(name, 20), batch_size=32)
    config = Config(MLPConfig.tiny(), Classification(), ImageData(), optim=optim, train=train, parallel=FSDP)
    learns_and_comes_back(config, tmp_path, batch())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_spares_what_does_not_decay(name):
    """The gradient is zero: the decaying matrix shrinks where the rule has weight decay, and
    nothing else moves."""
    spec = {
        "w": params.Param((4, 4), ("embed", "mlp"), params.ones()),
        "b": params.Param((4,), ("mlp",), params.ones()),
        "table": params.Param((8, 4), ("vocab", "embed"), params.ones()),
    }
    tree = params.init(spec, jax.random.key(0))
    still = jax.tree.map(np.zeros_like, tree)
    moved = {}
    for decay in (0.0, 0.5):
        tx = OptimConfig(name=name, lr=0.1, schedule="constant", weight_decay=decay).make(spec, 10).tx
        moved[decay], _ = tx.update(still, tx.init(tree), tree, grad_norm=np.float32(0), value=np.float32(1))
    by_decay = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), moved[0.5], moved[0.0])
    unmasked = {"dadapt_adamw", "prodigy", "momo", "momo_adam"}  # optax's have no mask
    if name not in unmasked:
        assert by_decay["b"] == 0
    if name not in unmasked | {"adam", "adamax", "nadam", "lars", "lamb", "cocob", "dog", "dowg"}:
        assert by_decay["w"] == pytest.approx(0.05, rel=0.05) or name.startswith("schedule_free")
        assert by_decay["table"] == pytest.approx(by_decay["w"], rel=1e-5)


def test_the_table_names_arguments_that_there_are():
    spec = LLAMA.model.make().spec
    known = arguments(OptimConfig(), spec, spec)
    for name, named in OPTIMIZERS.items():
        assert set(named.takes.split()) <= known.keys(), name


def test_a_schedule_free_rule_is_evaluated_at_its_average():
    optim = OptimConfig(
        name="schedule_free_sgd", lr=0.5, betas=(0.9, 0.99), schedule="constant", weight_decay=0.0, clip=0.0
    )
    train = TrainConfig(steps=20, batch_size=32)
    parallel = ParallelConfig(data=1)
    config = Config(MLPConfig.tiny(), Classification(), ImageData(), optim=optim, train=train, parallel=parallel)
    mesh = sharding.make_mesh(parallel, jax.devices()[:1])
    state, step = init_state(config, mesh), make_train_step(config, mesh)
    z = params.paths(jax.tree.map(np.asarray, state.params))["head/kernel"]
    average = z
    for n in range(3):  # arXiv:2405.15682, equation 7: equal weights at a constant rate
        before = params.paths(jax.tree.map(np.asarray, state.params))["head/kernel"]
        np.testing.assert_allclose(before, 0.1 * z + 0.9 * average, rtol=1e-4, atol=1e-6)
        state, _ = step(state, batch())
        z = np.asarray(state.opt_state.z["head"]["kernel"])
        average = (1 - 1 / (n + 1)) * average + z / (n + 1)
        np.testing.assert_allclose(params.paths(weights(state))["head/kernel"], average, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"optim.ema_decay = 0.9 with a schedule-free optimizer"):
        dataclasses.replace(optim, ema_decay=0.9).make(config.model.make().spec, 10)


@pytest.mark.slow
def test_a_rule_that_keeps_its_first_weights_begins_with_those_of_another_run():
    config = dataclasses.replace(LLAMA, optim=OptimConfig(name="schedule_free_adamw"))
    state = init_state(config, sharding.make_mesh(FSDP))
    other = jax.tree.map(lambda x: x + 1, state.params)
    found = with_weights(config, state, other, state.frozen)
    for tree in (found.opt_state.z, found.ema, found.params):
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), tree, other)
    jax.tree.map(lambda x, y: x.sharding == y.sharding, found, state)


def test_the_page_names_every_optimizer():
    page = (Path(__file__).parents[2] / "docs" / "train.md").read_text()
    assert [name for name in OPTIMIZERS if f"`{name}`" not in page] == []


# --------------------------------------------------------------------------------------------- Muon


def sides(model: str) -> dict[str, tuple | None]:
    """{path: (input dimensions, output dimensions)}, or None where Adam trains."""
    found = {path: dimensions(p) for path, p in params.paths(MODELS[model].tiny().make().spec).items()}
    return {path: d and (d.reduction_axis, d.output_axis) for path, d in found.items()}


def test_muon_takes_the_matrices_of_each_layer_and_leaves_tables_to_adam():
    llama = sides("llama")
    assert llama["layers/attn/q"] == ((1,), (2, 3))
    assert llama["layers/attn/o"] == ((1, 2), (3,))
    assert llama["layers/mlp/down"] == ((1,), (2,))
    assert llama["embed/table"] is llama["head/table"] is llama["layers/attn_norm/scale"] is None
    assert sides("mixtral")["layers/experts/gate"] == ((2,), (3,)), "each expert of each layer for itself"
    deepseek = sides("deepseek")
    assert deepseek["dense_layers/mlp/gate"] == ((1,), (2,)), "a stack whose dimension has no name"
    assert deepseek["dense_layers/attn/o"] == ((1, 2), (3,))
    gpt2 = sides("gpt2")
    assert gpt2["positions/table"] is gpt2["layers/mlp/up/bias"] is gpt2["layers/attn/q_bias"] is None
    cnn = sides("cnn")
    assert cnn["conv1/kernel"] == ((0, 1, 2), (3,))
    assert cnn["conv0/kernel"] is cnn["head/kernel"] is None, "what reads pixels and what names classes"


def test_muon_makes_the_update_of_each_layer_orthogonal():
    """All singular values of one layer's update are alike, those of the gradient are not."""
    axes = ("layers", "embed", "heads", "head_dim")
    spec = {"layers": {"w": params.Param((3, 8, 2, 4), axes, params.normal(1.0), decay=True)}}
    tree = params.init(spec, jax.random.key(0))
    grads = jax.tree.map(lambda x: x * np.array([1.0, 10.0, 100.0]).reshape(3, 1, 1, 1).astype(np.float32), tree)
    tx = OptimConfig(name="muon", lr=1.0, schedule="constant", weight_decay=0.0, clip=0.0).make(spec, 10).tx
    updates, _ = tx.update(grads, tx.init(tree), tree, grad_norm=np.float32(0), value=np.float32(0))
    values = np.linalg.svd(np.asarray(updates["layers"]["w"]).reshape(3, 8, 8), compute_uv=False)
    assert values.max() / values.min() < 3
    assert np.linalg.svd(np.asarray(grads["layers"]["w"]).reshape(3, 8, 8), compute_uv=False).max() > 100
    rms = np.sqrt(np.mean(np.square(updates["layers"]["w"])))
    assert 0.1 < rms < 0.3, "as large as AdamW's"


@pytest.mark.slow
def test_muon_trains_a_stack_of_layers_over_eight_devices(tmp_path):
    optim = OptimConfig(name="muon", lr=1e-2, schedule="constant")
    config = dataclasses.replace(LLAMA, optim=optim, train=TrainConfig(steps=20, batch_size=8))
    tokens = np.random.default_rng(0).integers(0, 64, (8, 17), dtype=np.int32)
    data = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((8, 16), np.float32)}
    learns_and_comes_back(config, tmp_path, data)
