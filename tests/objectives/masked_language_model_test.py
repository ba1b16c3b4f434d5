"""The masked-LM loss: only chosen tokens count, and the next sentence joins it with the weight of
one."""

import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.models import Model, Out
from bigmodel_jax.objectives import BertPretraining, MaskedLanguageModel

LOGITS = jnp.asarray(np.float32(np.random.default_rng(0).normal(size=(3, 5, 7))))
PAIRS = jnp.asarray(np.float32(np.random.default_rng(1).normal(size=(3, 2))))
TARGETS = jnp.asarray(np.int32(np.random.default_rng(2).integers(0, 7, (3, 5))))
# The last row fills up the batch.
WEIGHTS = jnp.array([[1.0, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
FOLLOWS = jnp.array([0, 1, 1])


def loss(value, train=True, objective=MaskedLanguageModel(), **batch):
    model = Model(spec={}, apply=lambda *_, **__: Out(value))
    batch = {"targets": TARGETS, "weights": WEIGHTS} | batch
    return objective.loss(model, {}, batch, rng=None, train=train)


def nats(logits, targets):
    logits = np.asarray(logits, np.float64)
    picked = np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
    return np.log(np.exp(logits).sum(-1)) - picked


def test_mean_over_the_chosen():
    expected = (nats(LOGITS, TARGETS) * np.asarray(WEIGHTS)).sum() / 3
    out = loss(LOGITS)
    assert float(out.mean.compute()) == pytest.approx(expected, rel=1e-5)
    assert float(out.mean.count) == 3
    changed = loss(LOGITS.at[2].add(1.0).at[0, 1].multiply(3.0))
    assert float(changed.mean.compute()) == float(out.mean.compute())


def pretraining(value, train=True, **batch):
    return loss(value, train, BertPretraining(), **batch)


def test_next_sentence_is_added_once():
    expected = (nats(LOGITS, TARGETS) * np.asarray(WEIGHTS)).sum() / 3 + nats(PAIRS, FOLLOWS)[:2].mean()
    out = pretraining({"logits": LOGITS, "next_sentence": PAIRS}, train=False, next_sentence=FOLLOWS)
    assert float(out.mean.compute()) == pytest.approx(expected, rel=1e-5)
    hits = np.mean(np.argmax(PAIRS, -1)[:2] == FOLLOWS[:2])
    assert float(out.metrics["next_sentence_accuracy"].compute()) == pytest.approx(hits)
    assert float(out.metrics["loss"].compute()) == pytest.approx(float(loss(LOGITS).mean.compute()))
    assert set(out.metrics) == {m.name for m in BertPretraining().metrics}


def test_a_model_without_a_head_for_pairs_is_told():
    with pytest.raises(ValueError, match="needs model.head = 'pretraining'"):
        pretraining(LOGITS, next_sentence=FOLLOWS)


def test_a_batch_of_nothing_costs_nothing():
    out = pretraining({"logits": LOGITS, "next_sentence": PAIRS}, weights=jnp.zeros((3, 5)), next_sentence=FOLLOWS)
    assert float(out.mean.compute()) == 0.0
