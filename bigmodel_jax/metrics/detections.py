"""Mean average precision by COCO's rules, from counts that add up over batches and devices.

The found boxes of a picture are matched in the order of falling scores. Each takes the free true
box of its class with the largest overlap, if that overlap reaches the threshold. Scores are counted
in `BINS` bins of their logit, and boxes in one bin count as equally confident. The results differ
by about 0.001 from the library's exact order (metrics/boxes.py).

Shapes: B batch, Q found boxes, M true boxes, K classes, T thresholds, S bins.
"""

import jax
import jax.numpy as jnp
import numpy as np

THRESHOLDS = np.round(np.arange(0.5, 1.0, 0.05), 2)
COUNTS = ("right", "found", "objects")
BINS, REACH = 512, 10.0  # the bins cover logits of scores from -REACH to REACH
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # most found boxes of a picture that count


def counts(corners, labels, scores, batch: dict, num_classes: int) -> dict[str, jax.Array]:
    """Counts found and true boxes of a batch, for `average_precisions`.

    Returns "right" (T, K, S), the found boxes that matched a true box; "found" (K, S), all found
    boxes; "objects" (K,), all true boxes. `corners` has shape (B, Q, 4), `labels` and `scores` have
    (B, Q). `batch` has boxes (B, M, 4) as centre and size, classes (B, M) with -1 for padding, and
    weights (B,).
    """
    true, rows = batch["boxes"], batch["weights"] > 0
    half = true[..., 2:] / 2
    true = jnp.concatenate([true[..., :2] - half, true[..., :2] + half], axis=-1)
    here = (batch["classes"] >= 0) & rows[:, None]
    best = jnp.argsort(-scores, axis=1)[:, :MOST]
    labels, scores = (jnp.take_along_axis(x, best, axis=1) for x in (labels, scores))
    corners = jnp.take_along_axis(corners, best[..., None], axis=1)
    overlap, union = overlap_and_union(corners[:, :, None], true[:, None])
    same = (labels[:, :, None] == batch["classes"][:, None]) & here[:, None]
    # Padding boxes are empty, so the bound avoids 0 / 0.
    got = jax.vmap(_matched)(jnp.where(same, overlap / jnp.maximum(union, 1e-12), -1.0))  # (B, Q, T)
    # The bin follows the logit of the score, so that bins are fine near 0 and 1.
    logit = jnp.log(scores) - jnp.log1p(-jnp.minimum(scores, 1 - 1e-7))
    place = jnp.clip((logit + REACH) / (2 * REACH) * BINS, 0, BINS - 1).astype(jnp.int32)
    cell = (labels * BINS + place).reshape(-1)
    counted = jnp.broadcast_to(rows[:, None], labels.shape).reshape(-1).astype(jnp.float32)
    # One scatter-add counts all found boxes (column 0) and the matches at each threshold.
    table = jnp.zeros((num_classes * BINS, 1 + len(THRESHOLDS)))
    both = jnp.concatenate([jnp.ones_like(got[..., :1]), got], axis=-1).reshape(-1, 1 + len(THRESHOLDS))
    table = table.at[cell].add(both * counted[:, None]).reshape(num_classes, BINS, -1)
    objects = (
        jnp.zeros(num_classes).at[jnp.maximum(batch["classes"], 0).reshape(-1)].add(here.reshape(-1).astype(float))
    )
    return {"found": table[..., 0], "right": jnp.moveaxis(table[..., 1:], -1, 0), "objects": objects}


def _matched(overlap_QM: jax.Array) -> jax.Array:
    """(Q, T) float32: 1.0 where a found box of one picture matches a true box at a threshold.

    The Q found boxes must be sorted by falling scores.
    """
    thresholds = jnp.asarray(THRESHOLDS, jnp.float32)

    def one(free_TM, overlap_M):
        # A true box that an earlier found box has taken is no longer a candidate.
        open_ = jnp.where(free_TM, overlap_M, -1.0)
        best = jnp.argmax(open_, axis=1)
        got = jnp.max(open_, axis=1) >= thresholds
        taken = got[:, None] & (jnp.arange(open_.shape[1]) == best[:, None])
        return free_TM & ~taken, got.astype(jnp.float32)

    return jax.lax.scan(one, jnp.ones((len(THRESHOLDS), overlap_QM.shape[1]), bool), overlap_QM)[1]


def area(corners: jax.Array) -> jax.Array:
    """Areas (...) of boxes (..., 4) given as left, top, right and bottom."""
    return (corners[..., 2] - corners[..., 0]) * (corners[..., 3] - corners[..., 1])


def overlap_and_union(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Areas (...) of the intersection and of the union of two boxes (..., 4).

    Boxes are given as left, top, right and bottom.
    """
    sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    common = jnp.prod(jnp.maximum(sides, 0), axis=-1)
    return common, area(a) + area(b) - common


def average_precisions(counted: dict[str, np.ndarray]) -> np.ndarray:
    """Average precision (T, K) from summed counts; NaN for a class without true boxes.

    It is the mean over 101 recall levels of the best precision at that recall or a higher one.
    """
    # Bins rise with the score, so the sums run from the highest bin down.
    right = np.cumsum(counted["right"][..., ::-1], axis=-1)
    found = np.cumsum(counted["found"][..., ::-1], axis=-1)
    precision = right / np.maximum(found, 1)
    precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    recall = right / np.maximum(counted["objects"], 1)[:, None]
    out = np.full(right.shape[:2], np.nan)
    for t, k in np.ndindex(*out.shape):
        if counted["objects"][k]:
            # The tolerance admits a recall that rounding has made slightly too small.
            place = np.searchsorted(recall[t, k], RECALLS - 1e-9)
            out[t, k] = np.where(place < BINS, precision[t, k][np.minimum(place, BINS - 1)], 0).mean()
    return out


def summary(counted: dict[str, np.ndarray]) -> dict[str, float]:
    """{"map", "map50", "map75"}, averaged over the classes that have true boxes; 0 where
    none has.
    """
    precision = average_precisions(counted)[:, counted["objects"] > 0]
    if not precision.size:
        return dict.fromkeys(("map50", "map", "map75"), 0.0)
    at_75 = int(np.argmin(np.abs(THRESHOLDS - 0.75)))
    found = (precision[0].mean(), precision.mean(), precision[at_75].mean())
    return dict(zip(("map50", "map", "map75"), map(float, found), strict=True))
