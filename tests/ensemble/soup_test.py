"""A greedy soup is never worse than its best member, and takes its members in the order of their
own figures."""

import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core.params import Param, normal
from bigmodel_jax.ensemble import soup

SPEC = {"w": Param((), (), normal(1.0))}
KEY = "eval/loss"


def made(values, target=0.0, more=False):
    """The soup of members that are one number each, judged by their distance from `target`."""

    def judge(weights):
        distance = abs(float(weights["w"]) - target)
        return {KEY: -distance if more else distance}

    trees = [{"w": jnp.float32(value)} for value in values]
    alone = [judge(tree) for tree in trees]
    return soup.greedy(trees.__getitem__, alone, SPEC, lambda mean: mean, judge, KEY, more), alone


@pytest.mark.parametrize("more", [False, True])
def test_members_are_tried_in_their_order_and_stay_where_the_figure_does_not_get_worse(more):
    found, _ = made([3.0, -1.0, 2.0, 40.0], more=more)
    assert [(one.number, one.kept) for one in found.order] == [(1, True), (2, True), (0, False), (3, False)]
    assert float(found.weights["w"]) == 0.5
    assert abs(found.scalars[KEY]) == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_it_is_never_worse_than_its_best_member(seed):
    found, alone = made(np.random.default_rng(seed).standard_normal(6), target=0.3)
    assert found.scalars[KEY] <= min(one[KEY] for one in alone)


def test_an_equal_figure_stays_in():
    found, _ = made([1.0, 1.0])
    assert [one.kept for one in found.order] == [True, True]


def test_a_mean_that_is_not_finite_stays_out():
    def judge(weights):
        return {KEY: float("nan")}

    trees = [{"w": jnp.float32(0)}, {"w": jnp.float32(1)}]
    found = soup.greedy(trees.__getitem__, [{KEY: 1.0}, {KEY: 2.0}], SPEC, lambda mean: mean, judge, KEY, False)
    assert [one.kept for one in found.order] == [True, False]
    assert found.scalars == {KEY: 1.0}


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_member_whose_figure_is_not_finite_is_tried_last(at):
    """Sorting by NaN would leave it first, and then no other member joins."""
    alone = [{KEY: 1.0}, {KEY: 2.0}]
    alone.insert(at, {KEY: float("nan")})
    trees = [{"w": jnp.float32(i)} for i in range(3)]
    found = soup.greedy(trees.__getitem__, alone, SPEC, lambda mean: mean, lambda _: {KEY: float("nan")}, KEY, False)
    assert found.order[-1].number == at
    assert found.scalars == {KEY: 1.0}
