"""Metrics of labels against scikit-learn, its published examples among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core.metrics import precision_recall_f1
from bigmodel_jax.metrics import labels


def test_the_k_likeliest_are_those_of_scikit_learns_documentation():
    # top_k_accuracy_score: 0.75 of k = 2
    truth = jnp.array([0, 1, 2, 2])
    logits = jnp.array([[0.5, 0.2, 0.2], [0.3, 0.4, 0.2], [0.2, 0.4, 0.3], [0.7, 0.2, 0.1]])
    assert float(labels.among_top(logits, truth, 2).mean()) == 0.75
    assert float(labels.among_top(logits, truth, 1).mean()) == 0.5
    assert float(labels.among_top(logits, truth, 3).mean()) == 1.0
    assert labels.among_top(jnp.zeros((3, 3)), jnp.arange(3), 2).tolist() == [1, 1, 0], "k of equal logits, and no more"


def test_averages_are_those_of_scikit_learns_documentation():
    # precision_recall_fscore_support: macro (0.22, 0.33, 0.26), micro (0.33, 0.33, 0.33)
    from sklearn import metrics as oracle

    truth, predicted = [0, 1, 2, 0, 1, 2], [0, 2, 1, 0, 0, 1]
    matrix = oracle.confusion_matrix(truth, predicted)
    found = labels.averages(precision_recall_f1(matrix), matrix)
    for kind in ("macro", "micro"):
        expected = oracle.precision_recall_fscore_support(truth, predicted, average=kind, zero_division=0)[:3]
        assert [found[kind][name] for name in ("precision", "recall", "f1")] == pytest.approx(expected)
    assert found["macro"]["precision"] == pytest.approx(0.22, abs=0.005)
    assert found["micro"]["support"] == 6


def test_overlap_is_the_jaccard_score_of_scikit_learns_documentation():
    # jaccard_score(y_true, y_pred, average=None) of three classes: [1, 0, 0.33]
    from sklearn import metrics as oracle

    matrix = oracle.confusion_matrix([0, 1, 2], [0, 2, 2])
    np.testing.assert_allclose(labels.overlap(matrix), [1.0, 0.0, 0.5])
    np.testing.assert_allclose(
        labels.overlap(oracle.confusion_matrix([0, 1, 1, 2], [0, 2, 1, 1])),
        oracle.jaccard_score([0, 1, 1, 2], [0, 2, 1, 1], average=None),
    )
    assert np.isnan(labels.overlap(np.array([[2, 0], [0, 0]]))[1]), "a class that nothing has"


def test_confusion_of_places_leaves_out_what_is_not_labelled():
    from sklearn import metrics as oracle

    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(4, 5, 3)).astype(np.float32), rng.integers(0, 3, (4, 5))
    truth[0, :2] = 255
    counts = jax.jit(labels.confusion_of_places)(jnp.asarray(logits), jnp.asarray(truth), jnp.array([1.0, 1, 1, 0]))
    kept = truth[:3] < 3
    expected = oracle.confusion_matrix(truth[:3][kept], logits[:3].argmax(-1)[kept])
    np.testing.assert_array_equal(counts, expected)
