"""The loss of self-play against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.data.games.matches import PAIRINGS
from bigmodel_jax.models.base import Out
from bigmodel_jax.objectives.self_play import SelfPlay


def batch(draw, num=5):
    legal = np.ones((num, 7), np.float32)
    legal[0, 3] = legal[1, :5] = 0
    policy = draw.random((num, 7)).astype(np.float32) * legal
    return {
        "search_policy": policy / policy.sum(-1, keepdims=True),
        "outcome": np.array([1, -1, 0, 1, -1], np.float32),
        "legal": legal,
        "weights": np.array([1, 1, 1, 0, 1], np.float32),
    }


def test_the_loss_is_cross_entropy_and_squared_error():
    draw = np.random.default_rng(0)
    rows, value = batch(draw), draw.normal(size=(5, 8)).astype(np.float32)
    loss = SelfPlay(value_weight=0.5).score(Out(jnp.asarray(value)), rows, params={}, train=True)
    policy = []
    for logits, target, legal in zip(value[:, :7], rows["search_policy"], rows["legal"], strict=True):
        kept = legal > 0
        share = np.exp(logits[kept]) / np.exp(logits[kept]).sum()
        policy.append(-(target[kept] * np.log(share)).sum())
    expected = np.array(policy) + 0.5 * (value[:, 7] - rows["outcome"]) ** 2
    assert float(loss.mean.total) == pytest.approx((expected * rows["weights"]).sum(), rel=1e-5)
    assert float(loss.mean.count) == 4


def test_wins_are_counted_by_match():
    draw = np.random.default_rng(1)
    rows = batch(draw) | {"won": np.array([1, 0, 1, 1, 0], np.float32), "pairing": np.array([0, 0, 1, 1, 3], np.int32)}
    found = SelfPlay().score(Out(jnp.zeros((5, 8))), rows, params={}, train=False).metrics
    means = {name: (float(found[name].total), float(found[name].count)) for name in PAIRINGS}
    assert list(means.values()) == [(1, 2), (2, 2), (0, 0), (0, 1)]


def test_another_number_of_moves_is_one_line():
    rows = batch(np.random.default_rng(2))
    with pytest.raises(ValueError, match=r"^model.num_moves = 4: the data has 7 moves$"):
        SelfPlay().score(Out(jnp.zeros((5, 5))), rows, params={}, train=True)
