"""What processes agree on, with threads for processes and a dict for JAX's coordination service."""

import itertools
import threading
import time

import jax
import numpy as np
import pytest

from bigmodel_jax.core import processes

COUNT = 3


class Service:
    """What is asked of the service: values by key, and barriers by name."""

    def __init__(self):
        self.values, self.changed, self.barriers = {}, threading.Condition(), {}

    def key_value_set(self, key, value):
        with self.changed:
            assert key not in self.values, "a key is set once"
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, 10), key
            return self.values[key]

    def key_value_dir_get(self, folder):
        with self.changed:
            return [(key, value) for key, value in self.values.items() if key.startswith(folder)]

    def wait_at_barrier(self, name, milliseconds):
        with self.changed:
            barrier = self.barriers.setdefault(name, threading.Barrier(COUNT))
        barrier.wait(10)


@pytest.fixture
def job(monkeypatch):
    """job(fn) -> [fn(process number) in each of three processes]."""
    service, here = Service(), threading.local()

    class Calls:
        def __next__(self):
            return next(here.calls)

    monkeypatch.setattr(processes, "_calls", Calls())
    monkeypatch.setattr(processes, "_service", lambda: service)
    monkeypatch.setattr(jax, "process_count", lambda: COUNT)
    monkeypatch.setattr(jax, "process_index", lambda: here.number)

    def run(fn):
        found = [None] * COUNT

        def one(number):
            here.number, here.calls = number, itertools.count()
            found[number] = fn(number)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(COUNT)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return found

    return run


def test_one_process_is_the_first(job):
    assert job(lambda _: processes.first()) == [True, False, False]


def test_the_first_ones_values_are_everyones(job):
    """There are two calls in a row, because each call has its own key."""
    assert job(lambda n: (processes.from_first(10 + n), processes.from_first(20 - n))) == [(10, 20)] * COUNT


@pytest.mark.parametrize(("failing", "first"), [((), None), ((0,), 0), ((2,), 2), ((2, 1), 1), ((0, 1, 2), 0)])
def test_all_hear_of_the_first_that_failed(job, failing, first):
    def run(number):
        one = processes.failed(number in failing)
        return one, processes.failed(False)

    assert job(run) == [(first, None)] * COUNT


def test_all_hear_what_some_have_to_say(job):
    def run(number):
        return [processes.gather("name", turn, "" if number == 1 else f"{turn}{number}") for turn in "ab"]

    assert job(run) == [[{0: "a0", 2: "a2"}, {0: "b0", 2: "b2"}]] * COUNT


def test_the_first_one_makes_and_the_others_find(job):
    made = []

    def run(number):
        return processes.in_turn("data", lambda: made.append(number) or len(made))

    found = job(run)
    assert made[0] == 0, "nobody else begins before it is done"
    assert sorted(made) == [0, 1, 2], "each once"
    assert found[0] == 1


class Slow:
    """A jitted function that notes when it is compiled and when it runs; `number` compiles last."""

    def __init__(self, number, events):
        self.number, self.events = number, events

    def lower(self, x):
        return self

    def compile(self):
        time.sleep(0.1 * self.number)
        self.events.append("compiled")
        return lambda x: self.events.append("runs") or x.sum()


def test_no_process_runs_what_another_one_still_compiles(job):
    events = []

    def run(number):
        function = processes.compiled_together(Slow(number, events))
        return [int(function(np.ones(size))) for size in (2, 2, 3)]

    assert job(run) == [[2, 2, 3]] * COUNT
    assert events[:COUNT] == ["compiled"] * COUNT
    assert events.count("compiled") == 2 * COUNT, "once for each shape"
    last = len(events) - 1 - events[::-1].index("compiled")
    assert events[last + 1 :] == ["runs"] * COUNT


def test_one_that_is_alone_waits_for_nobody():
    processes.meet("nobody")
    assert processes.first()
    assert processes.from_first(7) == 7
    assert (processes.failed(True), processes.failed(False)) == (0, None)
    made = []
    assert processes.in_turn("data", lambda: made.append(1) or 5) == 5
    assert made == [1]
