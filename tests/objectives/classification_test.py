"""Classification loss on a model whose logits are its parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.models.base import Model, Out
from bigmodel_jax.objectives import Classification

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(np.float32(RNG.normal(size=(12, 3))))
BATCH = {"label": RNG.integers(0, 3, 12).astype(np.int32), "weights": np.ones(12, np.float32)}
MODEL = Model(spec={}, apply=lambda p, batch, **_: Out(p, updates={"norm/mean": jnp.ones(2)}))


@functools.cache
def compiled(train, **options):
    return jax.jit(lambda logits, batch: Classification(**options).loss(MODEL, logits, batch, rng=None, train=train))


def loss(logits=LOGITS, batch=BATCH, train=False, **options):
    return compiled(train, **options)(logits, batch)


@pytest.mark.slow
def test_scalars_are_sklearns():
    from sklearn import metrics as oracle

    scalars = Classification().summarize(loss().metrics)
    predicted = np.asarray(LOGITS).argmax(-1)
    probs = np.asarray(jax.nn.softmax(LOGITS))
    assert scalars["loss"] == pytest.approx(oracle.log_loss(BATCH["label"], probs), rel=1e-5)
    assert scalars["accuracy"] == pytest.approx(oracle.accuracy_score(BATCH["label"], predicted))
    assert scalars["macro_f1"] == pytest.approx(oracle.f1_score(BATCH["label"], predicted, average="macro"))
    for name in ("precision", "recall"):
        score = getattr(oracle, f"{name}_score")
        assert scalars[f"macro_{name}"] == pytest.approx(score(BATCH["label"], predicted, average="macro"))
    assert scalars["micro_f1"] == pytest.approx(oracle.f1_score(BATCH["label"], predicted, average="micro"))
    areas = oracle.roc_auc_score(BATCH["label"], probs, multi_class="ovr")
    assert scalars["roc_auc"] == pytest.approx(areas, abs=1e-6), "twelve scores of a class lie in bins of their own"
    assert set(scalars) == {m.name for m in Classification().metrics} - {"top5"}


@pytest.mark.slow
def test_the_likeliest_five_of_many_classes_are_sklearns():
    from sklearn import metrics as oracle

    logits = RNG.normal(size=(12, 9)).astype(np.float32)
    scalars = Classification().summarize(loss(jnp.asarray(logits)).metrics)
    expected = oracle.top_k_accuracy_score(BATCH["label"], logits, k=5, labels=range(9))
    assert scalars["top5"] == pytest.approx(expected)
    assert set(scalars) == {m.name for m in Classification().metrics}


def test_curves_and_calibration_are_recorded_as_lists():
    tables = Classification().tables(loss().metrics)
    assert set(tables) == {"confusion", "roc", "precision_recall", "calibration"}
    assert np.sum(tables["confusion"]) == sum(row[0] for row in tables["calibration"]) == 12


@pytest.mark.slow
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


def soft(shares, **more):
    return BATCH | {"soft_label": np.asarray(shares, np.float32)} | more


def test_soft_labels_of_one_class_are_that_label():
    one_hot = soft(np.eye(3)[BATCH["label"]])
    for smoothing in (0.0, 0.2):
        got, want = (loss(batch=b, train=True, label_smoothing=smoothing) for b in (one_hot, BATCH))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got[:2], want[:2])


def test_soft_labels_weigh_the_losses_of_their_classes():
    shares = RNG.dirichlet([1, 1, 1], 12)
    log_probs = np.asarray(jax.nn.log_softmax(LOGITS))
    weights = np.where(np.arange(12) % 3, 1, 0).astype(np.float32)
    got = loss(batch=soft(shares, weights=weights), train=True, label_smoothing=0.1)
    plain = -(shares * log_probs).sum(-1)
    smooth = 0.9 * plain - 0.1 * log_probs.mean(-1)
    np.testing.assert_allclose(got.mean.total, (smooth * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(got.metrics["loss"].total, (plain * weights).sum(), rtol=1e-5)
    assert got.mean.count == 8
    right = (np.asarray(LOGITS).argmax(-1) == BATCH["label"]) * weights
    assert got.metrics["accuracy"].total == right.sum()


def test_soft_labels_are_for_training():
    jax.tree.map(np.testing.assert_array_equal, loss(batch=soft(np.full((12, 3), 1 / 3)))[:2], loss()[:2])


def test_statistics_pass_through():
    assert set(loss(train=True).updates) == {"norm/mean"}


def test_confusion_only_in_evaluation():
    assert "confusion" not in loss(train=True).metrics
    assert loss().metrics["confusion"].total.sum() == 12
