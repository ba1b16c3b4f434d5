"""Signals that end a run: the first, a second one while it saves, and the loop that obeys between
steps."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.report.run_clock import RunClock
from bigmodel_jax.training import loop
from bigmodel_jax.training.early_stopping import Patience
from bigmodel_jax.training.signals import Interrupted, Stop

ME = os.getpid()


@pytest.fixture(autouse=True)
def handlers():
    """SIGTERM and SIGINT as Python has them (a shell's background jobs ignore SIGINT), and again
    after each test."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    left = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert left == usual


def test_a_second_sigterm_is_only_noted():
    with Stop() as stop:
        assert not stop.after(1)
        os.kill(ME, signal.SIGTERM)
        assert stop.after(2)
        os.kill(ME, signal.SIGTERM)
        os.kill(ME, signal.SIGTERM)
        assert stop.after(3)
        assert stop.signal == signal.SIGTERM


def test_a_second_ctrl_c_ends_at_once():
    with Stop() as stop:
        os.kill(ME, signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(ME, signal.SIGINT)


def test_a_ctrl_c_after_a_sigterm_is_the_first_ctrl_c():
    with Stop() as stop:
        os.kill(ME, signal.SIGTERM)
        os.kill(ME, signal.SIGINT)
        assert stop.signal == signal.SIGINT


def test_in_a_job_jax_is_told_and_names_the_step(monkeypatch):
    """Ctrl-C becomes SIGTERM, which JAX's preemption service takes; the flag is set where the
    service says."""
    told = []
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("bigmodel_jax.training.signals.multihost_utils.reached_preemption_sync_point", lambda n: n == 3)
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        with Stop() as stop:
            os.kill(ME, signal.SIGINT)
            assert told == [signal.SIGTERM]
            assert [stop.after(n) for n in (1, 2, 3)] == [False, False, True]
            assert stop.signal == signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_was_interrupted_says_by_what_and_where():
    error = Interrupted(signal.SIGTERM, 7)
    assert str(error) == "interrupted by SIGTERM; saved at step 7"
    assert (error.signal_number, error.step) == (signal.SIGTERM, 7)


# ----------------------------------------------------------------------------------------- the loop


class Recorded(loop.Run):
    """A run whose phases are written down: ("record" | "evaluate" | "save", step); signals come
    where `during` says."""

    def __init__(self, steps=6, evaluate_every=0, save_every=0, start=0, during=None):
        self.config = SimpleNamespace(
            train=SimpleNamespace(steps=steps, max_skipped=9), eval=SimpleNamespace(every=evaluate_every),
            checkpoint=SimpleNamespace(every=save_every, local_every=0), report=SimpleNamespace(watch=0),
        )  # fmt: skip
        self.batches, self.start, self.seen, self.during = Batches(), start, [], during or {}
        self.patience = Patience("eval/loss", "min", limit=0)
        self.wall, self.constants, self.sets = RunClock(Path()), {}, []
        self.judge, self.spikes = None, SimpleNamespace(found=None, given=lambda step: None)
        self.profile = SimpleNamespace(begin=lambda *_: None, end=lambda *_: 0.0)

    def note(self, what, step):
        self.seen.append((what, step))
        for number in self.during.get((what, step), ()):
            os.kill(ME, number)

    def record(self, step, sums, wait):
        assert sums == {"step": step, loop.DIGEST: step - 1}
        self.note("record", step)

    def evaluate(self, step, state, whole, sets):
        assert state == step
        assert whole
        self.note("evaluate", step)
        return {"eval/loss": float(step)}

    def save(self, step, state, scalars):
        assert state == step
        self.note("save", step)
        self.saved = scalars

    def run(self):
        def step(state, batch, constants):
            assert batch == state
            self.note("step", state + 1)
            return state + 1, {"step": state + 1}

        self.batches.number = self.start
        with Stop() as stop:
            state, scalars = self.loop(self.start, SimpleNamespace(step=step, digest=lambda batch: batch), stop)
        return state, scalars, stop.signal


class Batches:
    def next(self, state):
        self.number += 1
        return self.number - 1

    def prefetch(self):
        pass

    def measured(self):
        return {}

    def wait(self, seconds):
        return True


def what(run: Recorded, name: str) -> list[int]:
    return [step for kind, step in run.seen if kind == name]


def test_a_run_records_every_step_evaluates_and_saves_when_it_is_due():
    run = Recorded(steps=7, evaluate_every=3, save_every=2)
    assert run.run() == (7, {"eval/loss": 7.0}, None)
    assert what(run, "step") == what(run, "record") == [1, 2, 3, 4, 5, 6, 7]
    assert what(run, "evaluate") == [3, 6, 7]
    assert what(run, "save") == [2, 4, 6, 7]
    assert run.seen.index(("record", 1)) > run.seen.index(("step", 2)), "the host reads behind the device"
    assert run.seen.index(("record", 3)) < run.seen.index(("evaluate", 3)) < run.seen.index(("step", 4))


def test_a_resumed_run_counts_on():
    run = Recorded(steps=5, evaluate_every=2, start=3)
    run.run()
    assert run.seen == [
        *(("step", 4), ("record", 4), ("evaluate", 4)),
        *(("step", 5), ("record", 5), ("evaluate", 5), ("save", 5)),
    ]


TERM = (signal.SIGTERM,)
MOMENTS = {
    "in a step": ({("step", 3): TERM}, 3, [3]),
    "while metrics are read": ({("record", 2): TERM}, 3, [3]),
    "in an evaluation": ({("evaluate", 4): TERM}, 4, [4]),
    "in a save, which is the one": ({("save", 2): TERM}, 3, [2, 3]),
    "again in the save that the first one asked for": ({("step", 3): TERM, ("save", 3): (*TERM, *TERM)}, 3, [3]),
    "in the last save": ({("save", 6): TERM}, 6, [2, 6]),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_saves_once_after_the_step_that_is_done(moment):
    during, stopped, saved = MOMENTS[moment]
    run = Recorded(evaluate_every=4, during=during)
    run.config.checkpoint.every = 2 if 2 in saved else 0
    state, _, number = run.run()
    assert (state, number) == (stopped, signal.SIGTERM)
    assert what(run, "step")[-1] == what(run, "record")[-1] == stopped
    assert [s for s in what(run, "save") if s in saved] == saved
    assert what(run, "save").count(stopped) == 1


def test_due():
    assert [n for n in range(1, 10) if loop.due(n, 4)] == [4, 8]
    assert not loop.due(4, 0)


def test_a_record_counts_skipped_steps_and_logs_when_it_is_due():
    """The loop's own `record` sees a skipped step between two that were not skipped."""
    written, shown = [], []
    run = object.__new__(loop.Run)
    run.start, run.skipped, run.clock, run.tokens_per_step = 0, 0, 0.0, 10
    run.headline = []
    run.wall = RunClock(Path())
    run.config = SimpleNamespace(train=SimpleNamespace(log_every=2, steps=3))
    run.throughput = SimpleNamespace(record=lambda *_: None, rates=lambda _: {"tokens_per_second": 1.0, "mfu": 0.5})
    run.progress = SimpleNamespace(update=lambda step, **values: shown.append((step, values["loss"])))
    run.writers = SimpleNamespace(write=lambda step, values: written.append((step, values)))
    run.spikes = SimpleNamespace(reads=(), count=0, see=lambda *_: None)
    run.trace, run.recompilations = SimpleNamespace(write=lambda *_: None), SimpleNamespace(count=lambda: 0)

    def sums(loss, skipped):
        one, none = np.float32(1), np.float32(0)
        return {
            "loss": Mean(np.float32(loss), one),
            "skipped_steps": Mean(np.float32(skipped), none),
            "grad_norm": Mean(np.float32(4), one),
            loop.DIGEST: Mean(np.uint32(7), one),
        }

    for step, (loss, skipped) in enumerate([(3.0, 0), (float("nan"), 1), (2.0, 0)], start=1):
        run.record(step, sums(loss, skipped), 0.0)
    assert [step for step, _ in written] == [2, 3]
    assert [step for step, _ in shown] == [1, 2, 3]
    assert written[1][1]["loss"] == 2.0
    assert written[1][1]["grad_norm"] == 4.0
    assert written[1][1]["tokens_per_second"] == 1.0
    assert run.skipped == 1
