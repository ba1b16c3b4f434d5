"""A common factor of all weights changes no mean, also where the weights together are less than
1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core.metrics import Mean, precision_recall_f1
from bigmodel_jax.metrics import labels, scores
from bigmodel_jax.nn import multi_token
from bigmodel_jax.nn.experts import moe
from bigmodel_jax.nn.head import Head
from bigmodel_jax.objectives import PolicyGradient, Regression
from bigmodel_jax.objectives.pairs import Texts
from bigmodel_jax.objectives.preference import DPO
from bigmodel_jax.training import watch
from bigmodel_jax.training.pieces import with_token_share

RNG = np.random.default_rng(0)
B, T, C = 4, 6, 3
X = RNG.standard_normal((B, T)).astype(np.float32)
LOGITS = RNG.standard_normal((B, T, C)).astype(np.float32)
LABELS = RNG.integers(0, C, (B, T))
WEIGHTS = RNG.integers(1, 3, (B, T)).astype(np.float32)
FACTOR = 2.0**-10  # a power of two, by which every product and quotient is exact


def further_tokens(weights):
    head = Head(jnp.asarray(LOGITS)[None], jnp.eye(C))
    return multi_token.loss(head, LABELS, weights, np.ones((B, T), int))


def share_of_tokens(weights):
    batch = with_token_share({"tokens": LABELS, "weights": weights})
    return moe.token_share(jax.tree.map(lambda x: x[:2], batch))


def noise_of_pieces(weights):
    """The gradient's noise from pieces whose summed gradient has the factor of the weights."""
    pieces = [watch.piece({"w": jnp.asarray(X[i] * weights[i])}, Mean(0.0, weights[i].sum())) for i in range(B)]
    sums = {name: sum((piece[name] for piece in pieces), Mean(0.0, 0.0)) for name in pieces[0]}
    return [mean.total for mean in watch.noise(sums, jnp.float32(0.5), 8).values()]


def classes(weights):
    sums = scores.sums(LOGITS[:, 0], LABELS[:, 0], weights[:, 0])
    found = jax.tree.map(np.asarray, sums)
    matrix = np.asarray(labels.confusion_of_places(LOGITS, LABELS, weights))
    micro = labels.averages(precision_recall_f1(matrix), matrix)["micro"]["f1"]
    return [scores.summarize(found)["ece"], micro, [row[1:] for row in scores.tables(found)["calibration"]]]


def regression(weights):
    sums = (
        Regression()
        .score(
            type("Out", (), {"value": jnp.asarray(X), "updates": {}}),
            {"target": LOGITS[..., 0], "weights": weights[:, 0]},
            params={},
            train=False,
        )
        .metrics
    )
    return list(Regression().summarize(jax.tree.map(np.asarray, sums)).values())


def policy(weights):
    means = [PolicyGradient(form=form).mean(X, jnp.asarray(weights)).compute() for form in ("bnpo", "dapo", "grpo")]
    return [*means, PolicyGradient(form="gspo").ratios(X, jnp.asarray(weights))[:, 0]]


def answers(weights):
    lengths = jnp.asarray(weights[:, :2])
    texts = Texts(X[:, :2] * lengths, lengths, jnp.ones(B))
    batch = {"reference": LOGITS[:, :2, 0] * lengths}
    return [texts.means, DPO(form="sigmoid_norm").terms(texts, None, batch).nats]


@pytest.mark.parametrize("of", [further_tokens, share_of_tokens, noise_of_pieces, classes, regression, policy, answers])
def test_a_common_factor_changes_no_mean(of):
    small = WEIGHTS * np.float32(FACTOR)
    assert small.sum() < 1
    for one, other in zip(jax.tree.leaves(of(WEIGHTS)), jax.tree.leaves(of(small)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
