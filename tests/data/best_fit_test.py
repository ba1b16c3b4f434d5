"""Best fit: every piece once, no row too full, the same rows each time, and no more of them than
first fit needs."""

import numpy as np
import pytest

from bigmodel_jax.data.text import packing
from bigmodel_jax.data.text.best_fit import best_fit

R = np.random.default_rng(0)
DISTRIBUTIONS = {
    "uniform": (R.integers(1, 129, 3000), 128),
    "short": (R.integers(1, 9, 3000), 128),
    "long": (R.integers(60, 129, 3000), 128),
    "skewed": (np.minimum(R.zipf(1.5, 3000), 100), 100),
    "one length": (np.full(1000, 33), 100),
    "whole rows": (np.full(50, 100), 100),
    "one piece": (np.array([7]), 100),
    "rows of one": (np.ones(40, np.int64), 1),
    "more than 16 bits": (R.integers(1, 70_001, 500), 70_000),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_piece_has_one_row_and_no_row_is_too_full(name):
    lengths, capacity = DISTRIBUTIONS[name]
    row = best_fit(lengths, capacity)
    np.testing.assert_array_equal(row, best_fit(lengths.copy(), capacity))
    used = np.bincount(row, weights=lengths)
    assert row.shape == lengths.shape
    assert used.max() <= capacity
    assert used.min() > 0, "a row number is left out"
    assert len(used) <= packing.first_fit(lengths, capacity).max() + 1


def one_by_one(lengths, capacity):
    """The rooms left, sorted, when pieces are placed one after the other, the longest first."""
    rooms = []
    for length in sorted(lengths.tolist(), reverse=True):
        fits = [room for room in rooms if room >= length]
        best = min(fits, default=capacity)
        if fits:
            rooms.remove(best)
        rooms.append(best - length)
    return sorted(rooms)


@pytest.mark.parametrize("name", ["uniform", "short", "long", "skewed", "one length"])
def test_groups_are_placed_as_pieces_would_be_one_by_one(name):
    lengths, capacity = DISTRIBUTIONS[name]
    lengths = lengths[:400]
    used = np.bincount(best_fit(lengths, capacity), weights=lengths)
    assert sorted((capacity - used).astype(int).tolist()) == one_by_one(lengths, capacity)


def test_a_plan_cuts_the_stream_without_gap_or_overlap():
    offsets = np.cumsum([0, *R.integers(1, 300, 500)])
    plan = packing.make_plan("best_fit", offsets, 128)
    places = np.sort(packing.ranges(plan.starts, plan.lengths))
    np.testing.assert_array_equal(places, np.arange(offsets[-1]))
    sums = np.add.reduceat(plan.lengths, plan.first[:-1])
    assert plan.first[-1] == len(plan.starts)
    assert sums.max() <= 128
    assert plan.num_rows <= packing.make_plan("first_fit", offsets, 128).num_rows
