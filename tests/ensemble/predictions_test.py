"""An ensemble's figures are those that numpy finds of the members' own predictions."""

import functools

import jax
import numpy as np
import pytest

from bigmodel_jax.config import Config
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.ensemble import predictions
from bigmodel_jax.models import MODELS, LinearConfig
from bigmodel_jax.objectives import Classification, Distillation, NextToken, Regression
from bigmodel_jax.training.eval_step import make_eval_step

MLP = MODELS["mlp"].tiny()


def evaluated(model, objective, trees, batch, how):
    """(loss of the ensemble, the members' outputs)."""
    config = Config(model, objective, DataConfig(), parallel=ParallelConfig(data=1))
    mesh, made = sharding.make_mesh(config.parallel, jax.devices()[:1]), config.make_model()
    ensemble = predictions.combined([made] * len(trees), objective.predicts, how)
    weights = {predictions.name_of(i): tree for i, tree in enumerate(trees)}
    sums, apply = make_eval_step(config, mesh, ensemble)(weights, batch), jax.jit(made.apply)
    return float(sums["loss"].compute()), [np.asarray(apply(t, batch).value, np.float64) for t in trees]


def trees_of(model, n=3):
    draw = jax.jit(functools.partial(params.init, model.make().spec))
    return [draw(jax.random.key(seed)) for seed in range(n)]


@pytest.mark.parametrize("how", ["predictions", "logits"])
def test_classes_by_the_mean_of_probabilities_or_of_logits(how):
    rng = np.random.default_rng(0)
    labels = np.arange(12) % MLP.num_classes
    batch = {
        "image": rng.standard_normal((12, 8, 8, 1), np.float32),
        "label": labels,
        "weights": np.ones(12, np.float32),
    }
    loss, outs = evaluated(MLP, Classification(), trees_of(MLP), batch, how)
    logits = np.mean(outs, axis=0)
    softmax = [np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (outs if how == "predictions" else [logits])]
    wanted = -np.log(np.mean(softmax, axis=0)[np.arange(12), labels]).mean()
    assert loss == pytest.approx(wanted, rel=1e-5)
    other = [np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in ([logits] if how == "predictions" else outs)]
    assert abs(loss + np.log(np.mean(other, axis=0)[np.arange(12), labels]).mean()) > 1e-4, "the two means differ"


def test_numbers_by_their_mean():
    model = LinearConfig()
    rng = np.random.default_rng(0)
    shape, outputs = model.inputs()["features"], model.make().spec
    batch = {"features": rng.standard_normal((6, *shape), np.float32), "weights": np.ones(6, np.float32)}
    width = model.make().apply(trees_of(model, 1)[0], batch).value.shape[-1]
    batch["target"] = rng.standard_normal((6, width), np.float32)
    loss, outs = evaluated(model, Regression(), trees_of(model), batch, "predictions")
    assert outputs
    assert loss == pytest.approx(np.mean((np.mean(outs, axis=0) - batch["target"]) ** 2), rel=1e-5)


def test_tokens_of_a_decoder_go_by_the_mean_of_probabilities():
    model = MODELS["llama"].tiny()
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 64, (2, 9)).astype(np.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((2, 8), np.float32)}
    loss, outs = evaluated(model, NextToken(), trees_of(model, 2), batch, "predictions")
    mean = np.mean([np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in outs], axis=0)
    wanted = -np.log(np.take_along_axis(mean, batch["targets"][..., None], axis=-1)).mean()
    assert loss == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "how", "says"),
    [
        (Regression(), "logits", "Regression predicts numbers, which have no logits"),
        (Distillation(teacher="runs/t"), "predictions", "Distillation does not declare predictions"),
    ],
    ids=["regression", "distillation"],
)
def test_what_has_no_mean_is_refused_in_one_line(objective, how, says, monkeypatch):
    monkeypatch.setattr(Distillation, "parameters", lambda *_: {"teacher": {}})
    with pytest.raises(ValueError, match=says) as error:
        predictions.check(objective, MODELS["llama"].tiny(), how)
    assert "\n" not in str(error.value)
