"""What simple methods reach stands beside the metrics when it is known; nothing waits for it."""

import logging
import subprocess
import sys
import threading
import time

from bigmodel_jax.training.baselines import Baselines


def until(condition) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("5 seconds were not enough")


def test_an_evaluation_has_what_is_known_and_waits_for_nothing():
    go = threading.Event()
    baselines = Baselines(lambda: {"xz_bits_per_byte": 2.25} if go.wait(60) else {})
    assert baselines.so_far() == {}
    go.set()
    until(baselines.so_far)
    assert baselines.so_far() == {"xz_bits_per_byte": 2.25}


def test_a_process_ends_without_it():
    """SIGTERM ends the process in the same way: the interpreter joins the threads of a pool, and it
    does not join this thread."""
    code = """
import lzma, os
from bigmodel_jax.training.baselines import Baselines
text = os.urandom(1 << 27)
Baselines(lambda: {"size": float(len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)))})
raise SystemExit(7)
"""
    # 128 MiB under xz -9e take two minutes.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (7, "")


def test_what_fails_is_said_in_the_log_and_left_out(caplog):
    def fail():
        raise OSError("the disk is gone")

    with caplog.at_level(logging.WARNING, "bigmodel_jax"):
        baselines = Baselines(fail)
        until(lambda: caplog.records)
    assert baselines.so_far() == {}
    assert caplog.messages == ["baselines are left out: the disk is gone"]
