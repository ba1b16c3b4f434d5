"""A signal ends a command in one line, wherever the main thread is."""

import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import gc, os, sys, time
from bigmodel_jax.core import interrupts
interrupts.GRACE_SECONDS = 0.5
interrupts.install()
try:
    {body}
except interrupts.Interrupt as stop:
    interrupts.end(stop)
"""
READY = "print('ready', flush=True); "
IMPORT = """import tempfile, pathlib
    folder = tempfile.mkdtemp()
    pathlib.Path(folder, "slow.py").write_text('''
import os, time
try:
    print("ready", flush=True)
    time.sleep(60)
except BaseException:
    os.abort()
''')
    sys.path.insert(0, folder)
    import slow"""
BODIES = {
    "an import that no exception may unwind": IMPORT,
    "python": READY + "time.sleep(60)",
    "a long call of C": "import ctypes; c = ctypes.CDLL(None); "
    + READY
    + "[c.usleep(1_000_000) for _ in [0]]; c.sleep(60)",
    "a callback that swallows": "gc.callbacks.append(lambda *_: time.sleep(0.2)); "
    + READY
    + "[gc.collect() for _ in range(300)]",
    "code that catches": "exec('''\\nprint(\"ready\", flush=True)\\nwhile True:\\n    try:\\n        time.sleep(9)\\n"
    "    except BaseException:\\n        continue\\n''')",
}


# The line "ready" is printed inside `try`: the signal may come before the next line runs.
SAVE = """with interrupts.patient():
        ends = time.monotonic() + 2
        ready = False
        while time.monotonic() < ends:
            try:
                ready = ready or not print("ready", flush=True)
                time.sleep(0.1)
            except interrupts.Interrupt:
                ready = True
        print("saved", file=sys.stderr, flush=True)
        print(interrupts.take(), file=sys.stderr)"""


def run(body, *signals, pause=0.3):
    """(exit code, lines on stderr, seconds from the first signal to the end)."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(pause)
    _, err = process.communicate(timeout=30)
    return process.returncode, err.splitlines(), time.monotonic() - began


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
@pytest.mark.parametrize("where", BODIES)
def test_one_line_and_the_signals_own_code(where, number, code):
    returned, lines, seconds = run(BODIES[where], number)
    assert returned == code, lines
    assert len(lines) == 1, lines
    assert f"interrupted by {number.name}; the same command" in lines[0]
    assert seconds < 5


def test_a_save_is_not_cut_by_the_first_signal_and_ends_by_itself():
    returned, lines, _ = run(SAVE, signal.SIGTERM)
    assert (returned, lines) == (0, ["saved", "15"])


def test_the_third_ctrl_c_ends_even_a_save():
    body = BODIES["code that catches"].replace("print", "interrupts.patient().__enter__(); print", 1)
    returned, lines, seconds = run(body, *[signal.SIGINT] * 3)
    assert returned == 130, lines
    assert len(lines) == 1
    assert seconds < 10


EARLY = """
import os, signal, threading
from bigmodel_jax.core import interrupts
start = threading.Thread.start
threading.Thread.start = lambda thread: (os.kill(os.getpid(), signal.{name}), start(thread))
try:
    interrupts.install()
finally:
    threading.Thread.start = start
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_while_the_handlers_are_made_waits_until_they_are(number, code):
    program = EARLY.format(name=number.name)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines() == [f"interrupted by {number.name}; the same command starts or resumes it"]


SWALLOWED = """
import os, signal, sys
from bigmodel_jax.core import interrupts
interrupts.install()
from bigmodel_jax import cli
def verb(args):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    except BaseException as error:
        raise {kind}("a library's own words") from error
cli.VERBS["train"] = cli.VERBS["train"]._replace(run=verb)
cli.main(["train", "x"])
"""


@pytest.mark.parametrize("kind", ["ValueError", "OSError", "RuntimeError"])
def test_an_error_that_a_library_makes_of_a_signal_is_the_signal(kind):
    program = SWALLOWED.format(kind=kind)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines() == ["interrupted by SIGINT; the same command starts or resumes it"]


ENDING = """
import os, signal, sys
from bigmodel_jax.core import interrupts
interrupts.install()

class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.{name}):
        kill(pid, number)

last = Last()  # deleted with this module, when the interpreter has taken its handlers of signals away
sys.exit(130)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_the_interpreter_ends_does_not_change_the_exit_code(name):
    done = subprocess.run([sys.executable, "-c", ENDING.format(name=name)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")
