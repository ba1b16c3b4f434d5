"""The watch between processes, alone: no JAX in these processes, so that every way to end is tried
in a second."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

PROGRAM = """
import os, signal, socket, sys, time
from bigmodel_jax.cluster import peers

me, count, port, what = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if me == 0:
    listener = peers.listen()
    print(listener.getsockname()[1], flush=True)
    peers.lead(listener, "secret", count, 20)
else:
    peers.follow("127.0.0.1", port, "secret", me, 20)
peers.agree({"jax": "0.13" if (what, me) == ("differ", 2) else "0.12", "optim.lr": 0.1}, 20)
if what == "die" and me == 1 or what == "leader dies" and me == 0:
    os.kill(os.getpid(), signal.SIGKILL)
if what == "mistake":
    peers.end("error: optim.lr = -1", 2)
if what == "bug" and me == 2:
    peers.end("Traceback of process 2", 1)
if what == "crash after a death":
    if me == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    peers.end("Gloo all-reduce failed", 1)
if what == "well":
    peers.say_goodbye()
    time.sleep(0.3 * (me == 1))
    sys.exit()
time.sleep(60)
"""


STANDS_STILL = """
import sys, time
from pathlib import Path
from bigmodel_jax.cluster import hung, peers
from bigmodel_jax.core import pulse

me, count, port, log = *map(int, sys.argv[1:4]), Path(sys.argv[4])
hung.SILENT_SECONDS = 6.0
if me == 0:
    listener = peers.listen()
    print(listener.getsockname()[1], flush=True)
    peers.lead(listener, "secret", count, 60)
else:
    peers.follow("127.0.0.1", port, "secret", me, 60)
with pulse.watched(None, log, alone=False):
    peers.agree({}, 60)
    print("here", flush=True)
    def wait_for_the_others():
        time.sleep(300)
    wait_for_the_others()
"""


@pytest.mark.few("1")
@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_process_is_named_with_the_stacks_of_the_others_and_ends_once_it_is_woken(stopped, tmp_path):
    started, port, log = [], "0", tmp_path / "log.txt"
    others = [i for i in range(3) if i != stopped]
    try:
        for me in range(3):
            command = [sys.executable, "-c", STANDS_STILL, str(me), "3", port, str(log)]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
            port = started[0].stdout.readline().strip() if me == 0 else port
        assert [p.stdout.readline() for p in started] == ["here\n"] * 3
        os.kill(started[stopped].pid, signal.SIGSTOP)
        said = "".join(started[i].communicate(timeout=90)[1] for i in others)
        os.kill(started[stopped].pid, signal.SIGCONT)
        woken = started[stopped].communicate(timeout=60)[1]
    finally:
        for process in started:
            process.kill()
            process.wait()
    name = f"error: process {stopped} (pid {started[stopped].pid} on {socket.gethostname()}) "
    assert [p.returncode for p in started] == [75, 75, 75], (said, woken)
    assert said.startswith(f"{name}has not answered for "), said
    assert said.count("\n") == 1
    assert woken.startswith(f"{name}did not answer, and the others have ended without it"), woken
    assert woken.count("\n") == 1
    for i in others:
        assert f"stacks of process {i} (pid {started[i].pid} on " in log.read_text()
    assert said in log.read_text()
    assert log.read_text().count("wait_for_the_others") >= 2


def run(what: str, count: int = 4) -> tuple[list[int], list[str], float]:
    """(exit codes, everything said on stderr, seconds)."""
    began, started, port = time.monotonic(), [], "0"
    try:
        for me in range(count):
            command = [sys.executable, "-c", PROGRAM, str(me), str(count), port, what]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
            port = started[0].stdout.readline().strip() if me == 0 else port
        said = [process.communicate(timeout=30)[1] for process in started]
        return [p.returncode for p in started], "".join(said).splitlines(), time.monotonic() - began
    finally:
        for process in started:
            process.kill()
            process.wait()


CASES = {
    "die": ([75, -9, 75, 75], "error: process 1 (pid"),
    "leader dies": ([-9, 75, 75, 75], "error: process 0 (pid"),
    "mistake": ([2, 2, 2, 2], "error: optim.lr = -1"),
    "bug": ([1, 1, 1, 1], "Traceback of process 2"),
    "crash after a death": ([75, -9, 75, 75], "error: process 1 (pid"),
    "differ": ([2, 2, 2, 2], "error: the processes of the job differ: jax is 0.13 in process 2 (pid"),
    "well": ([0, 0, 0, 0], None),
}


@pytest.mark.parametrize("what", CASES)
def test_all_end_within_seconds_and_one_line_says_why(what):
    codes, lines, seconds = run(what)
    expected, says = CASES[what]
    assert codes == expected, lines
    assert len(lines) == (says is not None), lines
    assert says is None or lines[0].startswith(says)
    assert seconds < 15


def test_a_stranger_is_not_heard():
    import socket

    from bigmodel_jax.cluster import peers

    listener = peers.listen()
    leader = peers.Leader(listener, "secret", 2)
    for text in (b"GET / HTTP/1.1\r\n\r\n", b'{"token": "guess", "process_id": 1}\n', b'{"end": 0}\n'):
        with socket.create_connection(("127.0.0.1", listener.getsockname()[1])) as stranger:
            stranger.sendall(text)
            stranger.settimeout(5)
            assert stranger.recv(10) == b""
    assert leader.peers == {}
    listener.close()
