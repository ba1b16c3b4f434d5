"""The pulse of a run, by a clock of its own; and a run of one process that hangs."""

import subprocess
import sys

import pytest

from bigmodel_jax.core import pulse
from bigmodel_jax.core.pulse import DATA, DEVICES, RECORD


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(pulse.time, "monotonic", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    return passes


def step(made, clock, number, data=0.0, devices=1.0, record=0.0):
    made.at(DATA, number)
    clock(data)
    made.at(DEVICES)
    clock(devices)
    made.at(RECORD)
    clock(record)


def test_a_step_is_counted_from_its_begin_and_the_own_part_without_the_devices(clock):
    made = pulse.Pulse()
    for number in range(1, 6):
        step(made, clock, number, data=0.25, devices=2.0, record=0.5)
    beat = made.read()
    assert (beat.step, beat.phase, beat.seconds) == (5, RECORD, 2.75)
    assert (beat.whole, beat.own, beat.num) == (2.75, 0.75, 3)  # neither the first step nor the one that goes on


def test_the_limit_follows_the_median(clock):
    made = pulse.Pulse()
    step(made, clock, 1)
    assert made.read().limit == pulse.FIRST_SECONDS
    for number in range(2, 9):
        step(made, clock, number, devices=40.0)
    assert made.read().limit == 400.0
    for number in range(9, 40):
        step(made, clock, number, devices=1.0)
    assert made.read().limit == pulse.FLOOR_SECONDS


def test_a_given_limit_counts_from_the_third_step_on_and_0_is_none(clock):
    made, without = pulse.Pulse(5.0), pulse.Pulse(0)
    for number in (1, 2, 3):
        made.at(DATA, number)
        without.at(DATA, number)
        assert made.read().limit == (5.0 if number == 3 else pulse.FIRST_SECONDS)
    clock(6.0)
    assert made.read().overdue
    assert not without.read().overdue


@pytest.mark.parametrize("phase", ["evaluating", "saving", "looking for what is not finite"])
def test_other_phases_have_no_limit_and_do_not_count(clock, phase):
    made = pulse.Pulse(5.0)
    for number in range(1, 6):
        step(made, clock, number)
    made.at(phase)
    clock(1000.0)
    assert not made.read().overdue
    made.at(DEVICES)
    assert made.read().seconds == 0.0
    clock(1.0)
    step(made, clock, 6)
    assert (made.read().whole, made.read().num) == (1.0, 3)


def test_a_process_that_stood_still_is_forgiven(clock):
    made, ticks = pulse.Pulse(5.0), pulse.Ticks()
    for number in (1, 2, 3):
        made.at(DATA, number)
    clock(1.0)
    assert ticks.gap() == 0
    clock(3600.0)
    made.forgive(ticks.gap())
    assert made.read().seconds == 1.0


ALONE = """
import sys, threading, time
from pathlib import Path
from bigmodel_jax.core import pulse
pulse.FIRST_SECONDS = 0.0
with pulse.watched(0.5, Path(sys.argv[1]), alone=True):
    for step in range(1, 4):
        pulse.at(pulse.DATA, step)
        pulse.at(pulse.DEVICES)
    pulse.at(pulse.DATA, 4)
    def a_dead_file_system():
        time.sleep(100)
    a_dead_file_system()
"""


def test_one_process_that_hangs_ends_with_75_one_line_and_its_stacks(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, tmp_path / "log.txt"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 75, done.stderr
    (said,) = done.stderr.splitlines()
    assert said.startswith("error: step 4 was not done after ")
    assert "above train.max_step_seconds = 0.5: this process was reading the data" in said
    assert said.endswith("the same command resumes the run")
    log = (tmp_path / "log.txt").read_text()
    assert said in log
    assert "a_dead_file_system" in log
