"""What calibration sees is what numpy finds of the arrays themselves, through scans over layers and
without."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from bigmodel_jax.compress import prune_calibration
from bigmodel_jax.config import Config
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import MODELS
from bigmodel_jax.nn import norm
from bigmodel_jax.nn.taps import tapped
from bigmodel_jax.objectives import Classification, NextToken
from bigmodel_jax.optim.pruning import targets

LLAMA = MODELS["llama"].tiny()


def opened(model, objective):
    config = Config(model, objective, DataConfig(), parallel=ParallelConfig(data=1))
    return (
        config,
        sharding.make_mesh(config.parallel, jax.devices()[:1]),
        jax.jit(functools.partial(params.init, model.make().spec))(jax.random.key(0)),
    )


def text(seed=0):
    tokens = np.random.default_rng(seed).integers(0, 64, (2, 9)).astype(np.int32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((2, 8), np.float32)}


def test_inputs_of_a_perceptrons_layers():
    model = MODELS["mlp"].tiny()
    config, mesh, weights = opened(model, Classification())
    rng = np.random.default_rng(0)
    batches = [
        {
            "image": rng.standard_normal((6, 8, 8, 1), np.float32),
            "label": np.arange(6),
            "weights": np.ones(6, np.float32),
        }
        for _ in range(2)
    ]
    wanted = targets("", model.make().spec)
    found = prune_calibration.input_squares(config, mesh, weights, batches, wanted)
    x = np.concatenate([b["image"].reshape(6, -1) for b in batches]).astype(np.float64)
    for layer in ("hidden0", "hidden1", "head"):
        np.testing.assert_allclose(found[f"{layer}/kernel"][0], np.square(x).sum(0), rtol=1e-4, atol=1e-6)
        x = np.maximum(x @ np.asarray(weights[layer]["kernel"], np.float64) + np.asarray(weights[layer]["bias"]), 0)


@pytest.mark.slow
def test_inputs_of_each_layer_of_a_stack():
    config, mesh, weights = opened(LLAMA, NextToken())
    wanted = targets("layers/.*", LLAMA.make().spec)
    found = prune_calibration.input_squares(config, mesh, weights, [text()], wanted)
    model = LLAMA.make()
    _, taps = jax.jit(tapped(model.apply, "residual", "mlp"))(weights, text())
    after = np.asarray(taps["residual"])
    before_mlp = after - np.asarray(taps["mlp"])  # the residual between the two halves of a block
    for layer in range(LLAMA.num_layers):
        own = jax.tree.map(lambda x: x[layer], weights["layers"])  # noqa: B023
        h = np.asarray(norm.rms(own["mlp_norm"], before_mlp[layer], eps=LLAMA.norm_eps), np.float64)
        np.testing.assert_allclose(found["layers/mlp/gate"][layer], np.square(h).sum((0, 1)), rtol=1e-4)
        np.testing.assert_allclose(found["layers/mlp/up"][layer], np.square(h).sum((0, 1)), rtol=1e-4)
        gate, up = (h @ np.asarray(own["mlp"][name], np.float64) for name in ("gate", "up"))
        hidden = gate / (1 + np.exp(-gate)) * up
        np.testing.assert_allclose(found["layers/mlp/down"][layer], np.square(hidden).sum((0, 1)), rtol=1e-4, atol=1e-9)


def test_what_is_not_multiplied_where_it_can_be_seen_is_refused_in_one_line():
    model = MODELS["cnn"].tiny()
    config, mesh, _ = opened(MODELS["mlp"].tiny(), Classification())
    config = dataclasses.replace(config, model=model)
    weights = model.make().init(jax.random.key(0))
    batch = {
        "image": np.ones((2, *model.inputs()["image"]), np.float32),
        "label": np.arange(2),
        "weights": np.ones(2, "f"),
    }
    with pytest.raises(ValueError, match="--kind magnitude needs no") as error:
        prune_calibration.input_squares(config, mesh, weights, [batch], targets("", model.make().spec))
    assert "\n" not in str(error.value)


def test_block_influence_is_one_minus_the_mean_cosine():
    config, mesh, weights = opened(LLAMA, NextToken())
    found = prune_calibration.block_influence(config, mesh, weights, [text(), text(1)])
    apply, wanted = jax.jit(tapped(LLAMA.make().apply, "residual")), []
    for batch in (text(), text(1)):
        first = np.asarray(weights["embed"]["table"])[batch["tokens"]]
        _, taps = apply(weights, batch)
        x = np.concatenate([first[None], np.asarray(taps["residual"])]).astype(np.float64)
        a, b = x[:-1], x[1:]
        cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        wanted.append(1 - cosine.mean((1, 2)))
    np.testing.assert_allclose(found, np.mean(wanted, axis=0), rtol=1e-4, atol=1e-6)
