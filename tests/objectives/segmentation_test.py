"""The loss and the metrics of single pixels, against numpy's definitions, and as sums that add up
over batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import metrics
from bigmodel_jax.models import Out
from bigmodel_jax.objectives import Segmentation

CLASSES, IGNORED = 4, 255
RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((3, 6, 5, CLASSES)).astype(np.float32)
MASK = RNG.integers(0, CLASSES - 1, (3, 6, 5)).astype(np.int32)  # nothing has the last class
MASK[0, 0], MASK[2, :, 3] = IGNORED, IGNORED
WEIGHTS = np.ones(3, np.float32)


@functools.partial(jax.jit, static_argnames=("objective", "train"))
def score(objective, logits, mask, weights=WEIGHTS, train=False):
    batch = {"mask": jnp.asarray(mask), "weights": jnp.asarray(weights)}
    return objective.score(Out(jnp.asarray(logits)), batch, params=None, train=train)


def log_softmax(x):
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def numpy_overlap(predicted, mask):
    """Intersection over union of each class that the mask or the prediction has, pixel sets counted
    one by one."""
    known = mask != IGNORED
    found = []
    for c in range(CLASSES):
        ours, theirs = (predicted == c) & known, (mask == c) & known
        if (ours | theirs).any():
            found.append((ours & theirs).sum() / (ours | theirs).sum())
    return found


def numpy_dice(logits, mask):
    """The mean over images of Dice's loss over the classes that each has, weighted by labelled
    pixels."""
    losses, pixels = [], []
    for own, labels in zip(logits, mask, strict=True):
        known = labels != IGNORED
        shares, truth = np.exp(log_softmax(own))[known], np.eye(CLASSES)[labels[known]]
        both, size = (shares * truth).sum(0), shares.sum(0) + truth.sum(0)
        losses.append(1 - ((2 * both + 1) / (size + 1))[truth.sum(0) > 0].mean())
        pixels.append(known.sum())
    return np.average(losses, weights=pixels)


@pytest.mark.slow
def test_cross_entropy_is_the_mean_over_labelled_pixels():
    loss, known = score(Segmentation(), LOGITS, MASK).mean, MASK != IGNORED
    expected = -np.take_along_axis(log_softmax(LOGITS)[known], MASK[known][:, None], axis=1).mean()
    np.testing.assert_allclose(loss.compute(), expected, rtol=1e-6)
    assert loss.count == known.sum()


def test_dice_is_added_with_its_weight():
    plain, both = (score(Segmentation(dice=d), LOGITS, MASK).mean.compute() for d in (0.0, 0.7))
    np.testing.assert_allclose(both - plain, 0.7 * numpy_dice(LOGITS, MASK), rtol=1e-5)


@pytest.mark.slow
def test_ignored_pixels_and_rows_that_fill_a_batch_have_no_gradient():
    weights = np.array([1, 1, 0], np.float32)
    loss = lambda x: score(Segmentation(dice=1.0), x, MASK, weights, train=True).mean.compute()  # noqa: E731
    gradient = np.abs(jax.grad(loss)(jnp.asarray(LOGITS)))
    assert not gradient[2].any()
    assert not gradient[0, 0].any()
    assert (gradient[:2][MASK[:2] != IGNORED].sum(-1) > 0).all()


def test_metrics_are_those_of_counted_pixels():
    loss = score(Segmentation(), LOGITS, MASK)
    found, predicted, known = Segmentation().summarize(loss.metrics), LOGITS.argmax(-1), MASK != IGNORED
    assert found["mean_iou"] == pytest.approx(np.mean(numpy_overlap(predicted, MASK)))
    assert found["pixel_accuracy"] == pytest.approx((predicted == MASK)[known].mean())
    recalls = [(predicted == c)[known & (c == MASK)].mean() for c in range(CLASSES - 1)]
    assert found["mean_accuracy"] == pytest.approx(np.mean(recalls))
    table = Segmentation().tables(loss.metrics)["overlap"]
    assert [row[0] for row in table] == pytest.approx(numpy_overlap(predicted, MASK))
    assert [row[3] for row in table] == [(c == MASK).sum() for c in range(CLASSES)]


@pytest.mark.slow
def test_a_class_that_nobody_has_is_left_out_of_the_mean():
    mask = np.zeros((1, 2, 2), np.int32)
    logits = np.zeros((1, 2, 2, CLASSES), np.float32)
    logits[..., 0] = 1
    logits[0, 0, 0, 1] = 2  # one pixel of four is taken for class 1
    loss = score(Segmentation(), logits, mask, np.ones(1, np.float32))
    assert Segmentation().summarize(loss.metrics)["mean_iou"] == pytest.approx((3 / 4 + 0) / 2)
    assert [row[0] for row in Segmentation().tables(loss.metrics)["overlap"]] == [0.75, 0.0, None, None]


@pytest.mark.slow
def test_sums_of_parts_are_those_of_the_whole():
    objective = Segmentation(dice=0.5)
    whole = score(objective, LOGITS, MASK)
    parts = [score(objective, LOGITS[i : i + 1], MASK[i : i + 1], WEIGHTS[:1]) for i in range(3)]
    total = metrics.add(metrics.add(parts[0].metrics, parts[1].metrics), parts[2].metrics)
    assert objective.summarize(total) == pytest.approx(objective.summarize(whole.metrics), rel=1e-5)
    mean = parts[0].mean + parts[1].mean + parts[2].mean
    np.testing.assert_allclose(mean.compute(), whole.mean.compute(), rtol=1e-5)


@pytest.mark.slow
def test_small_logits_are_brought_to_the_size_of_the_mask():
    """Each logit stands for a 3x3 square, so resizing keeps the likeliest class in the middle of
    each square."""
    small = RNG.standard_normal((1, 4, 4, CLASSES)).astype(np.float32)
    mask = small.argmax(-1).repeat(3, 1).repeat(3, 2).astype(np.int32)
    mask[:, [0, 2, 3, 5, 6, 8, 9, 11]] = IGNORED
    mask[:, :, [0, 2, 3, 5, 6, 8, 9, 11]] = IGNORED
    found = score(Segmentation(), small, mask, np.ones(1, np.float32))
    assert found.mean.count == 16
    assert Segmentation().summarize(found.metrics)["pixel_accuracy"] == 1.0


def test_a_classifier_is_refused():
    with pytest.raises(
        ValueError, match=r"needs logits \(rows, height, width, classes\), and the model gives \(3, 4\)"
    ):
        score(Segmentation(), LOGITS[:, 0, 0], MASK)
