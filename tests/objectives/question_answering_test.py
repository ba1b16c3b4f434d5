"""The loss of where an answer stands: the mean of its two ends."""

import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.models import Model, Out
from bigmodel_jax.objectives import QuestionAnswering

LOGITS = jnp.asarray(np.float32(np.random.default_rng(0).normal(size=(3, 6, 2))))
BATCH = {"start": jnp.array([1, 2, 0]), "end": jnp.array([3, 5, 0]), "weights": jnp.array([1.0, 1.0, 0.0])}


def loss(logits):
    model = Model(spec={}, apply=lambda *_, **__: Out(logits))
    return QuestionAnswering().loss(model, {}, BATCH, rng=None, train=False)


def test_mean_of_both_ends_over_rows_with_weight():
    log_probs = np.asarray(LOGITS) - np.log(np.exp(np.asarray(LOGITS)).sum(1, keepdims=True))
    ends = [-log_probs[n, BATCH[name][n], k] for n in (0, 1) for k, name in enumerate(("start", "end"))]
    assert float(loss(LOGITS).mean.compute()) == pytest.approx(np.mean(ends), rel=1e-5)


def test_an_exact_match_needs_both_ends():
    right = LOGITS.at[0, 1, 0].set(9.0).at[0, 3, 1].set(9.0).at[1, 2, 0].set(9.0).at[1, 0, 1].set(9.0)
    assert float(loss(right).metrics["exact_match"].compute()) == 0.5
