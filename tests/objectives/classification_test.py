"""Classification loss on a model whose logits are its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as oracle

from bigmodel_jax.models.base import Model, Out
from bigmodel_jax.objectives import Classification

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(12, 3)), jnp.float32)
BATCH = {"label": RNG.integers(0, 3, 12).astype(np.int32), "weights": np.ones(12, np.float32)}
MODEL = Model(spec={}, apply=lambda p, batch, **_: Out(p, updates={"norm/mean": jnp.ones(2)}))


def loss(logits=LOGITS, batch=BATCH, train=False, **options):
    return Classification(**options).loss(MODEL, logits, batch, rng=None, train=train)


def test_scalars_are_sklearns():
    scalars = Classification().summarize(loss().metrics)
    predicted = np.asarray(LOGITS).argmax(-1)
    probs = np.asarray(jax.nn.softmax(LOGITS))
    assert scalars["loss"] == pytest.approx(oracle.log_loss(BATCH["label"], probs), rel=1e-5)
    assert scalars["accuracy"] == pytest.approx(oracle.accuracy_score(BATCH["label"], predicted))
    assert scalars["macro_f1"] == pytest.approx(oracle.f1_score(BATCH["label"], predicted, average="macro"))
    assert set(scalars) == {m.name for m in Classification().metrics}


def test_rows_that_only_pad_the_batch_change_nothing():
    padded = {"label": np.append(BATCH["label"], [0, 0]), "weights": np.append(BATCH["weights"], [0, 0])}
    got = loss(jnp.concatenate([LOGITS, jnp.ones((2, 3))]), padded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), (got.mean, got.metrics), loss()[:2])


def test_label_smoothing_is_trained_on_and_not_reported():
    plain, smooth = loss(train=True), loss(train=True, label_smoothing=0.3)
    assert smooth.metrics["loss"].total == plain.metrics["loss"].total
    uniform = -np.mean(jax.nn.log_softmax(LOGITS), axis=-1).sum()
    np.testing.assert_allclose(smooth.mean.total, 0.7 * plain.mean.total + 0.3 * uniform, rtol=1e-5)
    assert loss(label_smoothing=0.3).mean.total == plain.mean.total, "evaluation is not smoothed"


def test_statistics_pass_through():
    assert set(loss(train=True).updates) == {"norm/mean"}


def test_confusion_only_in_evaluation():
    assert "confusion" not in loss(train=True).metrics
    assert loss().metrics["confusion"].total.sum() == 12
