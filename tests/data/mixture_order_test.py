"""The order of a mixture's examples: caps on passes, weights by size, and what each part has given,
without those before."""

import fractions
import math

import numpy as np
import pytest

from bigmodel_jax.data.mixture_order import SLOTS, Mixture, Stage, by_size, most_examples

SIZES = (7, 50, 1000)
CAPS = (2, 3.5, 0)
STAGES = (Stage(0, (3, 1, 0.5)), Stage(20, (1, 1, 1)), Stage(60, temperature=2))


def one_by_one(stages, batch_size, sizes, caps, number):
    """The parts of the first examples by the definition: a leg begins at a stage, and where a part
    has given its last."""
    most = [math.floor(fractions.Fraction(str(c)) * n) if c else math.inf for c, n in zip(caps, sizes, strict=True)]
    given, parts, stage, begin, weights = [0] * len(sizes), [], -1, 0, None
    for example in range(number):
        now = max(i for i, s in enumerate(stages) if s.step * batch_size <= example)
        own = stages[now].weights or by_size(sizes, stages[now].temperature)
        live = tuple(w if given[i] < most[i] else 0 for i, w in enumerate(own))
        if (now, live) != (stage, weights):
            stage, weights, begin = now, live, example
            pattern = Mixture((Stage(0, live),), 1).draw(np.arange(4000))[0]
        parts.append(int(pattern[example - begin]))
        given[parts[-1]] += 1
    return parts, given


def test_a_part_gives_its_passes_and_then_its_share_goes_to_the_others():
    mixture = Mixture(STAGES, 4, SIZES, CAPS)
    source, nth = mixture.draw(np.arange(2000))
    expected, given = one_by_one(STAGES, 4, SIZES, CAPS, 2000)
    assert source.tolist() == expected
    assert given[:2] == [14, 175], "two passes over 7 rows, three and a half over 50"
    for i in range(3):
        assert (nth[source == i] == np.arange(given[i])).all()
    assert mixture.end is None


def test_any_example_and_any_count_is_known_without_those_before():
    mixture = Mixture(STAGES, 4, SIZES, CAPS)
    source, nth = mixture.draw(np.arange(2000))
    for example in (0, 1, 79, 80, 81, 239, 240, 500, 1999):
        assert [int(x[0]) for x in mixture.draw(np.array([example]))] == [source[example], nth[example]]
        assert mixture.given(example).tolist() == np.bincount(source[:example], minlength=3).tolist()
    assert mixture.given(10**12).tolist() == [14, 175, 10**12 - 189]


def test_a_mixture_ends_where_no_part_with_a_weight_may_give_more():
    mixture = Mixture((Stage(0, (1, 1)),), 4, (7, 20), (1, 2))
    assert mixture.end == 47
    source, _ = mixture.draw(np.arange(47))
    assert np.bincount(source).tolist() == [7, 40]
    with pytest.raises(
        ValueError, match=r"^data\.max_epochs: after 47 examples every part with a weight has given all"
    ):
        mixture.draw(np.arange(44, 48))
    assert mixture.given(1000).tolist() == [7, 40]
    dry = Mixture((Stage(0, (1, 0)), Stage(5, (1, 1))), 4, (7, 20), (1, 0))
    assert dry.end == 7, "the second stage is never reached"


def test_caps_far_beyond_one_pattern_are_exact():
    sizes, caps = (10**9, 3 * 10**5 + 7), (0, 1.1)
    mixture = Mixture((Stage(0, (0.9, 0.1)),), 1, sizes, caps)
    most = most_examples(caps, sizes)[1]
    assert most == 330_007
    begin = mixture.legs[1].first
    assert mixture.given(begin).tolist() == [begin - most, most]
    assert mixture.draw(np.array([begin - 1]))[0][0] == 1, "the last one that it gives ends the leg"
    assert abs(begin - 10 * most) < 2 * SLOTS


def test_weights_by_size_are_powers_of_the_sizes():
    assert by_size((100, 25), 1) == (1, 0.25)
    assert by_size((100, 25), 2) == (1, 0.5)
    assert by_size((100, 25), 1e9) == pytest.approx((1, 1))
    source, _ = Mixture((Stage(0, temperature=1 / 0.3),), 1, (10_000, 100)).draw(np.arange(SLOTS))
    alpha = np.array([10_000, 100]) ** 0.3  # mT5's form
    assert np.bincount(source) / SLOTS == pytest.approx(alpha / alpha.sum(), abs=2 / SLOTS)
