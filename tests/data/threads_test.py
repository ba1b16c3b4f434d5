"""Threads that decode pictures do all of the work, keep its order, and raise what a task raises."""

import time

import pytest

from bigmodel_jax.data.images import threads


def test_each_does_all_and_raises_what_was_raised():
    done = []
    threads.each(done.append, 100)
    assert sorted(done) == list(range(100))
    threads.each(done.append, 0)
    with pytest.raises(ZeroDivisionError):
        threads.each(lambda number: 1 // (number - 7), 100)


def test_results_come_in_the_order_of_the_items_and_few_are_read_ahead():
    read = []

    def items():
        for number in range(200):
            read.append(number)
            yield number

    def slow(number):
        time.sleep(0.002 if number == 0 else 0)
        return number

    found = threads.in_order(slow, items())
    assert next(found) == 0
    assert len(read) <= threads.AHEAD * threads.CORES + 2
    assert list(found) == list(range(1, 200))
