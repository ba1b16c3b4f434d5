"""Metrics are sums: however a batch is cut, the same number comes out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Mean

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(50, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, 50)
WEIGHTS = RNG.integers(0, 2, 50).astype(np.float32)


def test_sums_over_pieces_equal_the_whole():
    values = RNG.normal(size=50).astype(np.float32)
    whole = metrics.weighted(values, WEIGHTS)
    pieces = [metrics.weighted(values[a:b], WEIGHTS[a:b]) for a, b in ((0, 7), (7, 30), (30, 50))]
    total = pieces[0] + pieces[1] + pieces[2]
    assert float(total.compute()) == pytest.approx(float(whole.compute()), rel=1e-6)
    assert float(whole.compute()) == pytest.approx(np.average(values, weights=WEIGHTS), rel=1e-5)
    mean_of_means = np.mean([float(p.compute()) for p in pieces])
    assert float(total.compute()) != pytest.approx(mean_of_means, rel=1e-3), (
        "the example must be able to tell the two apart"
    )


def test_nothing_counted_is_zero_and_no_nan():
    assert metrics.weighted(np.ones(3), np.zeros(3)).compute() == 0


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_weights_of_less_than_one_together_are_divided_by_their_sum(array):
    weights = array(np.array([0.125, 0.0, 0.25], np.float32))
    assert metrics.weighted(array(np.array([3.0, 9.0, 6.0])), weights).compute() == 5
    np.testing.assert_array_equal(metrics.divisor(array([0.0, 0.25, 1.0, 7.0])), [1.0, 0.25, 1.0, 7.0])


def test_a_plain_sum_is_not_divided():
    assert (Mean(np.full((2, 2), 7.0), np.zeros(())).compute() == 7).all()


def test_bfloat16_values_are_summed_in_float32():
    mean = metrics.weighted(jnp.ones(1001, jnp.bfloat16), jnp.ones(1001, jnp.bfloat16))
    assert mean.total == mean.count == 1001, "bfloat16 has 1000 and 1004"


def test_mean_goes_through_jit_and_scan():
    def step(carry, x):
        return carry + metrics.weighted(x, jnp.ones_like(x)), None

    got = jax.jit(lambda xs: jax.lax.scan(step, Mean(jnp.zeros(()), jnp.zeros(())), xs)[0])(
        jnp.arange(6.0).reshape(3, 2)
    )
    assert jax.tree.map(np.asarray, got).compute() == 2.5


def test_add_is_key_wise():
    one = {"a": Mean(1.0, 1), "b": Mean(2.0, 4)}
    assert metrics.add(one, one) == {"a": Mean(2.0, 2), "b": Mean(4.0, 8)}


def test_accuracy():
    from sklearn import metrics as oracle

    got = metrics.weighted(metrics.correct(LOGITS, LABELS), WEIGHTS).compute()
    assert got == pytest.approx(oracle.accuracy_score(LABELS, LOGITS.argmax(-1), sample_weight=WEIGHTS))


def test_correct_over_positions():
    logits = LOGITS[:48].reshape(6, 8, 4)
    labels = LABELS[:48].reshape(6, 8)
    np.testing.assert_array_equal(
        metrics.correct(logits, labels).reshape(-1), metrics.correct(LOGITS[:48], LABELS[:48])
    )


def test_confusion_counts_label_by_prediction():
    from sklearn import metrics as oracle

    got = metrics.confusion(LOGITS, LABELS, WEIGHTS).compute()
    np.testing.assert_allclose(got, oracle.confusion_matrix(LABELS, LOGITS.argmax(-1), sample_weight=WEIGHTS))


def test_precision_recall_f1():
    from sklearn import metrics as oracle

    matrix = metrics.confusion(LOGITS, LABELS, WEIGHTS).compute()
    got = metrics.precision_recall_f1(matrix)
    want = oracle.precision_recall_fscore_support(LABELS, LOGITS.argmax(-1), sample_weight=WEIGHTS)
    for name, value in zip(("precision", "recall", "f1", "support"), want, strict=True):
        np.testing.assert_allclose(got[name], value, rtol=1e-6, err_msg=name)


def test_a_class_never_seen_nor_predicted_scores_zero():
    got = metrics.precision_recall_f1(np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]]))
    assert {k: v[2] for k, v in got.items()} == {"precision": 0, "recall": 0, "f1": 0, "support": 0}


def test_values_and_weights_that_would_broadcast_are_refused():
    with pytest.raises(AssertionError, match="weighted|shape"):
        metrics.weighted(jnp.ones((50, 1)), WEIGHTS)
