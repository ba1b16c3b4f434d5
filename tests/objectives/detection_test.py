"""Detection: matchings by brute force, rows that count for nothing, mean average precision beside
faster-coco-eval."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.metrics import detections
from bigmodel_jax.metrics.boxes import Boxes, mean_average_precision
from bigmodel_jax.models.base import Out
from bigmodel_jax.objectives import Detection
from bigmodel_jax.objectives.detection import corners, found_of, generalized_iou, match

B, Q, M, K = 6, 5, 3, 4


def outputs(seed: int, queries: int = Q, rows: int = B):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, queries, K + 1)).astype(np.float32)
    boxes = rng.uniform(0.2, 0.5, (rows, queries, 4)).astype(np.float32)
    return {"logits": jnp.asarray(logits), "boxes": jnp.asarray(boxes)}


def batch_of(seed: int, rows: int = B, most: int = M):
    """A batch whose rows have 0, 1, 2 ... objects in turn."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, K, (rows, most))
    classes[np.arange(most)[None] >= (np.arange(rows) % (most + 1))[:, None]] = -1
    boxes = rng.uniform(0.2, 0.5, (rows, most, 4)) * (classes >= 0)[..., None]
    weights = np.ones(rows, np.float32)
    return {"boxes": jnp.asarray(boxes, jnp.float32), "classes": jnp.asarray(classes), "weights": jnp.asarray(weights)}


def test_objects_take_the_queries_of_least_cost():
    value, batch = outputs(0), batch_of(1)
    here = batch["classes"] >= 0
    found = np.asarray(
        jax.jit(match)(value["logits"], value["boxes"], batch["boxes"], batch["classes"], here, 5.0, 2.0)
    )
    shares = np.asarray(jax.nn.softmax(value["logits"]))
    corner = jax.tree.map(corners, (value["boxes"][:, :, None], batch["boxes"][:, None]))
    overlaps = np.asarray(jax.jit(generalized_iou)(*corner))
    boxes, classes = np.asarray(value["boxes"]), np.asarray(batch["classes"])
    for row in range(B):
        num = int(here[row].sum())
        assert len(set(found[row])) == M, "no query is taken twice"
        cost = np.zeros((Q, num))
        for q, m in np.ndindex(Q, num):
            distance = np.abs(boxes[row, q] - np.asarray(batch["boxes"])[row, m]).sum()
            cost[q, m] = 5 * distance - shares[row, q, classes[row, m]] - 2 * overlaps[row, q, m]
        best = min(sum(cost[q, m] for m, q in enumerate(chosen)) for chosen in itertools.permutations(range(Q), num))
        assert sum(cost[found[row, m], m] for m in range(num)) == pytest.approx(best, abs=1e-5)


@pytest.mark.slow
def test_a_row_of_weight_zero_and_a_batch_without_objects():
    value, batch = outputs(0), batch_of(1)
    score = jax.jit(lambda v, b: Detection().score(Out(v), b, params={}, train=True).mean)
    lost = dict(batch, weights=batch["weights"].at[3].set(0.0))
    changed = {k: x.at[3].set(0.3) for k, x in value.items()}
    assert float(score(value, lost).compute()) == pytest.approx(float(score(changed, lost).compute()))
    empty = dict(batch, classes=jnp.full((B, M), -1), boxes=jnp.zeros((B, M, 4)))
    gradient = jax.jit(jax.grad(lambda v: Detection().score(Out(v), empty, params={}, train=True).mean.total))(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert not np.any(gradient["boxes"]), "there is nothing to bring a box to"
    assert np.abs(gradient["logits"]).max() > 0


@pytest.mark.slow
def test_outputs_that_are_not_finite_end_the_matching():
    value, batch = outputs(0), batch_of(1)
    value["boxes"] = value["boxes"].at[2].set(jnp.nan)
    found = Detection().score(Out(value), batch, params={}, train=True).mean
    assert np.isnan(found.compute())


@pytest.mark.exhaustive
def test_early_layers_learn_an_object_from_several_queries():
    value, batch = outputs(0, queries=12), batch_of(1)
    layers = {f"layer_{name}": x[:, None] for name, x in value.items()}

    def loss(objective):
        return jax.grad(lambda v: objective.score(Out(value | v), batch, params={}, train=True).mean.total)(layers)

    one, three = (np.asarray(loss(Detection(early_matches=n))["layer_boxes"])[:, 0] for n in (1, 3))
    objects = np.asarray((batch["classes"] >= 0).sum(axis=1))
    assert (np.any(one, axis=-1).sum(axis=1) == objects).all()
    assert (np.any(three, axis=-1).sum(axis=1) == 3 * objects).all()


def test_a_model_without_boxes_is_refused():
    with pytest.raises(ValueError, match="objective: Detection needs a model that gives logits and boxes of queries"):
        Detection().score(Out(jnp.zeros((B, K))), batch_of(1), params={}, train=True)


@pytest.mark.slow
def test_mean_average_precision_equals_the_librarys():
    """The metric is summed over two batches of predicted boxes, of which some are near true boxes.
    Scores within a bin of 0.005 count as equal."""
    rows, most, queries = 60, 4, 12
    batch, rng = batch_of(2, rows, most), np.random.default_rng(3)
    near = np.concatenate([np.asarray(batch["boxes"])] * 3, axis=1)
    near = np.where(near > 0, near + rng.normal(scale=0.02, size=near.shape), rng.uniform(0.2, 0.5, near.shape))
    labels = np.concatenate([np.maximum(np.asarray(batch["classes"]), 0)] * 3, axis=1)
    labels = np.where(rng.random(labels.shape) < 0.8, labels, rng.integers(0, K, labels.shape))
    logits = rng.normal(size=(rows, queries, K + 1)) + 3.0 * (labels[..., None] == np.arange(K + 1))
    found = found_of(jnp.asarray(logits, jnp.float32), jnp.asarray(near, jnp.float32))
    halves = [slice(0, 25), slice(25, rows)]
    parts = [detections.counts(*(x[h] for x in found), {k: x[h] for k, x in batch.items()}, K) for h in halves]
    ours = detections.summary({k: np.asarray(parts[0][k] + parts[1][k]) for k in detections.COUNTS})
    here = np.asarray(batch["classes"]) >= 0
    true = [
        Boxes(np.asarray(corners(batch["boxes"][n]))[here[n]], np.asarray(batch["classes"][n])[here[n]])
        for n in range(rows)
    ]
    guesses = [Boxes(*(np.asarray(x[n]) for x in found)) for n in range(rows)]
    theirs = mean_average_precision(guesses, true)
    assert 0.1 < theirs["map"] < theirs["map50"] < 0.95
    assert ours == pytest.approx(theirs, abs=5e-3)


@pytest.mark.slow
def test_no_true_boxes_at_all():
    objective, value = Detection(), outputs(0)
    batch = dict(batch_of(1), classes=jnp.full((B, M), -1))
    found = objective.score(Out(value), batch, params={}, train=False).metrics
    found = {name: Mean(np.asarray(mean.total), np.asarray(mean.count)) for name, mean in found.items()}
    assert {name: objective.summarize(found)[name] for name in ("map", "map50", "map75")} == {
        "map": 0,
        "map50": 0,
        "map75": 0,
    }
    assert objective.tables(found)["precision_by_class"] == [[None, None, 0.0]] * K
