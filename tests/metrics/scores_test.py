"""Curves and calibration against scikit-learn: its published examples, and random scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import metrics
from bigmodel_jax.metrics import scores

SUMS = jax.jit(lambda *args: scores.sums(*args))


def added(logits, labels, weights=None):
    weights = np.ones(len(labels), np.float32) if weights is None else weights
    found = SUMS(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), jnp.asarray(weights))
    return jax.tree.map(np.asarray, found)


def binary(probabilities):
    """Logits (B, 2) that give class 1 these probabilities."""
    return np.log(np.stack([1 - np.asarray(probabilities), probabilities], axis=1))


def test_areas_are_those_of_scikit_learns_documentation():
    # roc_auc_score, roc_curve and average_precision_score of the same four scores: 0.75, 0.83...
    found = added(binary([0.1, 0.4, 0.35, 0.8]), [0, 0, 1, 1])
    scalars = scores.summarize(found)
    assert scalars["roc_auc"] == 0.75
    assert scalars["average_precision"] == pytest.approx(0.8333333)
    ((number, one),) = scores.curves(found)
    assert number == 1
    # roc_curve: fpr [0, 0, 0.5, 0.5, 1], tpr [0, 0.5, 0.5, 1, 1]
    np.testing.assert_allclose(one.false_positives, [0, 0, 0.5, 0.5, 1])
    np.testing.assert_allclose(one.true_positives, [0, 0.5, 0.5, 1, 1])


def test_calibration_is_that_of_scikit_learns_and_torchmetrics_documentation(monkeypatch):
    monkeypatch.setattr(scores, "CALIBRATION_BINS", 3)
    # calibration_curve: prob_true [0, 0.5, 1], prob_pred [0.2, 0.525, 0.85]
    truth = jnp.array([0, 0, 0, 0, 1, 1, 1, 1, 1], jnp.float32)
    says = jnp.array([0.1, 0.2, 0.3, 0.4, 0.65, 0.7, 0.8, 0.9, 1.0])
    rows, confidence, hits = np.asarray(jax.jit(scores.calibration_sums)(says, truth, jnp.ones(9)).total)
    np.testing.assert_allclose(hits / rows, [0, 0.5, 1])
    np.testing.assert_allclose(confidence / rows, [0.2, 0.525, 0.85], rtol=1e-6)
    # MulticlassCalibrationError(num_classes=3, n_bins=3, norm="l1"): 0.2
    probabilities = [[0.25, 0.20, 0.55], [0.55, 0.05, 0.40], [0.10, 0.30, 0.60], [0.90, 0.05, 0.05]]
    traced_anew = jax.jit(lambda *args: scores.sums(*args))
    table = traced_anew(jnp.log(jnp.array(probabilities)), jnp.array([0, 1, 2, 0]), jnp.ones(4))["calibration"].total
    assert scores.calibration_error(table) == pytest.approx(0.2)


def rounded(probabilities):
    """Scores as their bins."""
    odds = np.log(probabilities) - np.log1p(-probabilities)
    return np.floor((odds + scores.FURTHEST) * scores.THRESHOLDS / (2 * scores.FURTHEST))


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [2, 4])
def test_random_scores_have_scikit_learns_areas(num_classes):
    from sklearn import metrics as oracle

    rng = np.random.default_rng(num_classes)
    labels = rng.integers(0, num_classes, 500)
    logits = rng.normal(size=(500, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    scalars = scores.summarize(added(logits, labels))
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    own = np.eye(num_classes)[labels]
    if num_classes == 2:
        p, own = p[:, 1], own[:, 1]
    binned = rounded(p)
    # Exactly those of the scores' bins, up to the few scores that rounding moves over a border;
    # near those of the scores.
    assert scalars["roc_auc"] == pytest.approx(oracle.roc_auc_score(own, binned), abs=2e-5)
    assert scalars["roc_auc"] == pytest.approx(oracle.roc_auc_score(own, p), abs=2e-3)
    assert scalars["average_precision"] == pytest.approx(oracle.average_precision_score(own, binned), abs=2e-4)
    assert scalars["average_precision"] == pytest.approx(oracle.average_precision_score(own, p), abs=5e-3)


def test_reliability_of_two_classes_is_scikit_learns():
    from sklearn import calibration

    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, 300)
    hit = rng.uniform(size=300) < p
    rows, confidence, hits = added(binary(p), hit.astype(np.int32))["calibration"].total
    rows, confidence, hits = (x[rows > 0] for x in (rows, confidence, hits))
    accuracy, mean = calibration.calibration_curve(hit, p, n_bins=scores.CALIBRATION_BINS)
    np.testing.assert_allclose(hits / rows, accuracy, rtol=1e-5)
    np.testing.assert_allclose(confidence / rows, mean, rtol=1e-5)


def test_batches_add_up_and_rows_without_weight_count_nothing():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    whole = added(logits, labels)
    halves = metrics.add(added(logits[:16], labels[:16]), added(logits[16:], labels[16:]))
    weights = np.r_[np.ones(40), np.zeros(8)].astype(np.float32)
    padded = added(np.r_[logits, np.full((8, 3), 9.0)], np.r_[labels, np.zeros(8, int)], weights)
    for other in (halves, padded):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), other, whole)
    assert whole["scores"].total.sum() == 40 * 3


def test_a_class_without_rows_has_no_area():
    logits = np.random.default_rng(2).normal(size=(20, 3))
    found = added(logits, np.arange(20) % 2)
    assert np.isnan(scores.curves(found)[2][1].area)
    assert 0 < scores.summarize(found)["roc_auc"] < 1
    assert [row[0] for row in scores.tables(found)["roc"]] == [0, 1]
    assert "roc_auc" not in scores.summarize(added(logits, np.zeros(20, int))), "one class alone"


def test_confident_models_have_curves_too():
    """Probabilities that float32 rounds to 1 and to 0 stay finite."""
    found = added([[50.0, 0.0], [0.0, 60.0], [100.0, 0.0]], [0, 1, 1])
    assert scores.summarize(found)["roc_auc"] == pytest.approx(0.75)


def test_more_classes_than_the_page_draws_leave_the_worst():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 12, 240)
    logits = rng.normal(size=(240, 12)) + np.linspace(0, 4, 12) * np.eye(12)[labels]
    found = added(logits, labels)
    tables, areas = scores.tables(found), [one.area for _, one in scores.curves(found)]
    assert [row[0] for row in tables["roc"]] == sorted(np.argsort(areas)[: scores.MOST_CURVES])
    assert all(
        len(row[2]) == len(row[3]) <= scores.POINTS for key in ("roc", "precision_recall") for row in tables[key]
    )
    assert np.shape(tables["calibration"]) == (scores.CALIBRATION_BINS, 3)


def test_many_classes_have_no_counts_by_threshold():
    def keys(num_classes):
        shapes = [
            jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (((2, num_classes), "float32"), ((2,), "int32"))
        ]
        return set(jax.eval_shape(scores.sums, *shapes, shapes[1]))

    assert keys(scores.MOST_CLASSES) == {"calibration", "scores"}
    assert keys(scores.MOST_CLASSES + 1) == {"calibration"}
