"""The losses by their definitions, and rows that only fill a batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import metrics
from bigmodel_jax.models.base import Model, Out
from bigmodel_jax.objectives import Contrastive
from bigmodel_jax.objectives.contrastive import BLOCK, ranks_of, retrieval

PARAMS = {"logit_scale": np.float32(1.2), "logit_bias": np.float32([-0.7])}


def embeddings(rows, seed=0):
    x = np.random.default_rng(seed).standard_normal((rows, 2, 5)).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnames="kind")
def loss(kind, x, weights):
    model = Model({}, lambda params, batch, **_: Out(batch["embeddings"]))
    batch = {"embeddings": jnp.asarray(x), "weights": jnp.asarray(weights, jnp.float32)}
    return Contrastive(kind=kind).loss(model, PARAMS, batch, rng=None, train=True)


def logits(x):
    return np.exp(1.2) * x[:, 0] @ x[:, 1].T - 0.7


def test_softmax_is_the_mean_of_both_directions():
    x = embeddings(6)
    rows, columns = (jax.nn.log_softmax(logits(x), axis=axis) for axis in (1, 0))
    expected = -(np.diag(rows).mean() + np.diag(columns).mean()) / 2
    assert float(loss("softmax", x, np.ones(6)).mean.compute()) == pytest.approx(float(expected), rel=1e-5)


def test_sigmoid_asks_every_pair_for_itself():
    x = embeddings(6)
    right = 1 / (1 + np.exp(-logits(x) * (2 * np.eye(6) - 1)))
    assert float(loss("sigmoid", x, np.ones(6)).mean.compute()) == pytest.approx(-np.log(right).sum() / 6, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_rows_without_weight_change_nothing(kind):
    x = embeddings(6)
    alone, filled = loss(kind, x[:4], np.ones(4)), loss(kind, x, [1, 1, 1, 1, 0, 0])
    assert float(filled.mean.compute()) == pytest.approx(float(alone.mean.compute()), rel=1e-5)
    assert float(filled.mean.count) == 4
    assert float(filled.metrics["accuracy"].total) == float(alone.metrics["accuracy"].total)


def test_accuracy_counts_images_that_find_their_text():
    x = embeddings(4)
    x[:, 1] = x[:, 0]
    assert float(loss("softmax", x, np.ones(4)).metrics["accuracy"].compute()) == 1
    x[:2, 1] = x[1::-1, 1]
    assert float(loss("softmax", x, np.ones(4)).metrics["accuracy"].compute()) == 0.5


@jax.jit
def metrics_of(x, weights):
    model = Model({}, lambda params, batch, **_: Out(batch["embeddings"]))
    batch = {"embeddings": jnp.asarray(x), "weights": jnp.asarray(weights, jnp.float32)}
    return Contrastive().loss(model, PARAMS, batch, rng=None, train=False).metrics


def evaluated(x, weights):
    return jax.tree.map(np.asarray, metrics_of(x, weights))


def test_an_evaluation_ranks_among_all_texts_of_all_its_batches():
    """There are three batches; two rows that are no pairs fill up the last one."""
    x = embeddings(22, seed=1)
    x[:, 1] += 0.8 * x[:, 0]
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    filled = np.concatenate([x, x[-1:], x[-1:]])
    parts = [evaluated(filled[n : n + 8], (np.arange(n, n + 8) < 22).astype(np.float32)) for n in (0, 8, 16)]
    total = metrics.add(metrics.add(parts[0], parts[1]), parts[2])
    found = Contrastive().summarize(total)
    order = np.argsort(-(x[:, 0] @ x[:, 1].T), axis=1)
    place = np.argmax(order == np.arange(22)[:, None], axis=1)
    assert 0 < np.mean(place < 1) < np.mean(place < 5) < 1
    assert found["image_to_text_top1"] == pytest.approx(np.mean(place < 1))
    assert found["image_to_text_top5"] == pytest.approx(np.mean(place < 5))
    backwards = retrieval(x[:, ::-1])
    assert found["text_to_image_top5"] == pytest.approx(backwards["image_to_text_top5"])
    assert found["chance_top1"] == pytest.approx(1 / 22)
    assert set(found) == {m.name for m in Contrastive().metrics}


def test_ranks_over_several_blocks():
    rng = np.random.default_rng(0)
    queries, answers = rng.integers(-9, 10, (2, BLOCK + 7, 3)).astype(np.float32)  # whose products are exact
    products = queries @ answers.T
    assert (ranks_of(queries, answers) == (products > np.diag(products)[:, None]).sum(1)).all()


def test_a_hit_among_two_is_that_of_torchevals_documentation():
    """The documentation shows hit_rate(input, target, k=2) = [1, 0, 0, 1]."""
    scores = np.array([[0.3, 0.1, 0.6], [0.5, 0.2, 0.3], [0.2, 0.1, 0.7], [0.3, 0.3, 0.4]], np.float32)
    answers = np.eye(3, dtype=np.float32)[[2, 1, 1, 0]]
    assert (ranks_of(scores, answers) < 2).tolist() == [True, False, False, True]


def test_equal_texts_are_all_right():
    same = np.ones((4, 3), np.float32)
    assert ranks_of(embeddings(4)[:, 0, :3], same).tolist() == [0, 0, 0, 0]
