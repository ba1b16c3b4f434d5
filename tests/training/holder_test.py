"""One process at a time trains in a run's folder, and a dead one does not keep it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bigmodel_jax.training import holder
from bigmodel_jax.training.holder import Holder

HOLDS = """
import sys, time
from pathlib import Path
from bigmodel_jax.training import holder
holder.Holder(Path(sys.argv[1])).take()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """A process of its own that holds `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def hurry(monkeypatch):
    monkeypatch.setattr(holder, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(holder, "SILENT_SECONDS", 0.5)


def another_host(folder: Path, **changes) -> dict:
    """The file as a holder on another host has left it."""
    name = {"host": "node7", "pid": 12, "since": "2026-01-01 00:00:00", "id": "a", "beat": 3} | changes
    (folder / holder.FILE).write_text(json.dumps(name).ljust(holder.LENGTH))
    return name


def test_the_second_process_is_refused_in_one_line_that_names_the_holder(tmp_path, other):
    with Holder(tmp_path) as hold, pytest.raises(ValueError, match="is in use") as raised:
        hold.take()
    message = str(raised.value)
    assert f"process {other.pid} on {socket.gethostname()}, started 20" in message
    assert "\n" not in message
    assert (tmp_path / holder.FILE).exists(), "who is refused takes nothing away"


def test_a_stopped_process_still_holds(tmp_path, other):
    other.send_signal(signal.SIGSTOP)
    with Holder(tmp_path) as hold, pytest.raises(ValueError, match=f"process {other.pid} on"):
        hold.take()


def test_a_killed_process_holds_no_longer(tmp_path, other):
    other.kill()
    other.wait()
    began = time.monotonic()
    with Holder(tmp_path) as hold:
        hold.take()
        assert json.loads((tmp_path / holder.FILE).read_bytes())["pid"] == os.getpid()
    assert time.monotonic() - began < 2, "on one host the kernel's lock says at once that the holder is dead"
    assert not (tmp_path / holder.FILE).exists()


def test_a_holder_on_another_host_is_seen_by_its_beat(tmp_path, hurry):
    name = another_host(tmp_path)
    program = f"""
import json, time
for beat in range(100):
    file = open({str(tmp_path / holder.FILE)!r}, "r+")
    file.write(json.dumps({name!r} | {{"beat": beat}}).ljust({holder.LENGTH})); file.close()
    time.sleep(0.05)
"""
    beating = subprocess.Popen([sys.executable, "-c", program])
    try:
        with Holder(tmp_path) as hold, pytest.raises(ValueError, match="process 12 on node7"):
            hold.take()
    finally:
        beating.kill()
        beating.wait()


def test_a_silent_holder_on_another_host_is_dead(tmp_path, hurry):
    another_host(tmp_path)
    with Holder(tmp_path) as hold:
        hold.take()


def test_without_locks_the_beat_alone_decides(tmp_path, hurry, monkeypatch):
    monkeypatch.setattr(holder, "_lock", lambda number: None)
    with Holder(tmp_path) as first:
        first.take()
        with Holder(tmp_path) as second, pytest.raises(ValueError, match="is in use"):
            second.take()
    with Holder(tmp_path) as third:
        third.take()


def test_who_was_taken_for_dead_stops_before_it_saves(tmp_path):
    with Holder(tmp_path) as hold:
        hold.take()
        hold.check()
        another_host(tmp_path)
        with pytest.raises(ValueError, match="process 12 on node7.* has taken the run"):
            hold.check()
    assert (tmp_path / holder.FILE).exists(), "the file belongs to the other one"


def test_the_file_of_a_beat_has_one_length(tmp_path):
    with Holder(tmp_path) as hold:
        hold.take()
        sizes = set()
        for beat in (0, 9, 123456):
            hold._beat(beat)
            sizes.add((tmp_path / holder.FILE).stat().st_size)
    assert sizes == {holder.LENGTH}


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": 1}'])
def test_a_file_that_is_no_holders_is_taken(tmp_path, hurry, content):
    (tmp_path / holder.FILE).write_text(content)
    with Holder(tmp_path) as hold:
        hold.take()
