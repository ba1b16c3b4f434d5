"""Ctrl-C and SIGTERM at a few times of a run: one line, the right code, within seconds.
chaos_test.py has many moments."""

import itertools
import signal
import time
from pathlib import Path

import pytest
from grids import few

import runs

SECONDS = 6.0  # 4 of grace, and what a busy machine needs to notice


def until_it_listens(process):
    """Waits for the command's first line: Python takes no SIGTERM before it, however long its own
    start takes."""
    bit = 1 << (signal.SIGTERM - 1)
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if any(int(line.split()[1], 16) & bit for line in lines if line.startswith(("SigBlk", "SigCgt"))):
            return
        time.sleep(0.01)


def interrupt(tmp_path, number, after):
    path, run_dir = runs.write(tmp_path), tmp_path / "run"
    process = runs.start("train", path, "--run_dir", run_dir, "--train.steps", "100000")
    until_it_listens(process)
    time.sleep(after)
    began = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err, time.monotonic() - began


def check(tmp_path, number, after):
    code, err, seconds = interrupt(tmp_path, number, after)
    assert code == (130 if number == signal.SIGINT else 0), err
    assert len(err.splitlines()) == 1, err
    assert f"interrupted by {number.name}" in err
    assert seconds < SECONDS


MOMENTS = ((signal.SIGINT, 0.5), (signal.SIGTERM, 1.5), (signal.SIGINT, 3.0))


@pytest.mark.parametrize(
    ("number", "after"), few(itertools.product((signal.SIGINT, signal.SIGTERM), (0.5, 1.5, 3.0)), *MOMENTS)
)
def test_a_run_is_told_to_end(tmp_path, number, after):
    check(tmp_path, number, after)
