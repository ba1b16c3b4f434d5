"""Metrics by group: intervals against scipy, and what a table says."""

import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Metric, Rows
from bigmodel_jax.metrics import groups


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (5, 5), (3, 10), (812, 1000)])
def test_wilsons_interval_is_scipys(hits, count):
    from scipy import stats  # not when tests are collected: it takes long

    expected = stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert groups.wilson(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_a_bootstrap_is_scipys_and_alike_each_time():
    from scipy import stats  # not when tests are collected: it takes long

    values = np.random.default_rng(0).exponential(size=60)
    expected = stats.bootstrap((values,), np.mean, method="percentile", rng=1, n_resamples=4000).confidence_interval
    found = groups.bootstrap(values, np.ones(60))
    assert found == pytest.approx((expected.low, expected.high), rel=0.03)
    assert groups.bootstrap(values, np.ones(60)) == found
    heavy = groups.bootstrap(np.r_[0.0, 10.0], np.r_[3.0, 1.0])
    assert heavy == (0, 10)


def table(values, group, weights, names=("a", "b")):
    one = jnp.asarray(weights, jnp.float32)
    return groups.table(groups.rows({"accuracy": (jnp.asarray(values), one)}, jnp.asarray(group)), names)


def test_each_group_has_its_own_rows_and_interval():
    lines = table([1, 0, 1, 1, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 0])
    assert [line[:4] for line in lines] == [["accuracy", "a", 2, 0.5], ["accuracy", "b", 2, 1.0]]
    assert tuple(lines[0][4:]) == groups.wilson(1, 2)
    assert tuple(table([1.5, 2.5], [0, 0], [1, 1])[0][4:]) == groups.bootstrap(np.array([1.5, 2.5]), np.ones(2))
    assert [line[1] for line in table([1, 1], [1, 1], [1, 1])] == ["b"], "a group without rows has no line"


def test_batches_add_up():
    rows = [groups.rows({"m": (jnp.ones(2), jnp.ones(2))}, jnp.array([0, n])) for n in (0, 1)]
    total = metrics.add(
        *({k: Rows(np.asarray(r.values), np.asarray(r.weights)) for k, r in one.items()} for one in rows)
    )
    assert [line[:3] for line in groups.table(total, ("a", "b"))] == [["m", "a", 3], ["m", "b", 1]]


@pytest.mark.parametrize(("better", "worst"), [("more", 0.2), ("less", 0.9)])
def test_the_worst_group_and_the_gap(better, worst):
    metric = Metric("share", "Share", better, "{:.1%}")
    lines = [["share", "a", 3, 0.2, 0, 1], ["share", "b", 3, 0.9, 0, 1], ["other", "a", 3, 0.0, 0, 1]]
    assert groups.summarize(metric, lines) == {"worst_group_share": worst, "share_gap": pytest.approx(0.7)}
    assert {m.name for m in groups.declared(metric)} == {"worst_group_share", "share_gap"}


def test_groups_are_in_order_and_few():
    assert groups.names_of(["10", "9", "b", "a", "9"], "data.group_by", "town") == ("9", "10", "a", "b")
    with pytest.raises(
        ValueError, match=r"data\.group_by = 'age': it has 60 different values; it must be .* at most 50"
    ):
        groups.names_of(list(map(str, range(60))), "data.group_by", "age")
