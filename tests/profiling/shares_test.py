"""Overlapping events share each moment, and the shares sum to the stretch."""

import random
from fractions import Fraction

from bigmodel_jax.profiling.shares import WAITING, Event, divide


def test_a_moment_is_divided_among_the_events_that_run_in_it():
    events = [Event(0, 10, "a"), Event(5, 15, "b"), Event(20, 30, "a")]
    assert divide(events, 0, 32) == {"a": 5 + 2.5 + 10, "b": 2.5 + 5, WAITING: 5 + 2}


def test_a_container_has_what_is_left_of_its_body():
    events = [Event(0, 100, "while", True), Event(10, 60, "inner", True), Event(20, 30, "dot"), Event(25, 40, "add")]
    assert divide(events, 0, 100) == {"while": 10 + 40, "inner": 10 + 20, "dot": 7.5, "add": 12.5}


def test_what_lies_outside_the_stretch_is_cut():
    assert divide([Event(-5, 5, "a"), Event(8, 30, "b"), Event(40, 50, "c")], 0, 10) == {"a": 5, WAITING: 3, "b": 2}
    assert divide([], 3, 7) == {WAITING: 4}


def test_shares_sum_to_the_stretch_exactly():
    rng = random.Random(0)
    events = []
    for i in range(300):
        start = Fraction(rng.randrange(10_000))
        events.append(Event(start, start + rng.randrange(1, 400), i % 17, i % 5 == 0))
    found = divide(events, Fraction(100), Fraction(9_000))
    assert abs(sum(found.values()) - 8_900) < 1e-6
    assert len(found) > 10
