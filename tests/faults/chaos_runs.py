"""Commands that can be disturbed, as processes of their own or forked from one that has imported
everything, and what each of them left: its exit code, its lines, its records, its parameters."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import runs
from bigmodel_jax import config_file
from bigmodel_jax.checkpoint import store
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.training.state import abstract_state

STEPS = 24
OPTIONS = ("--train.steps", str(STEPS), "--eval.every", "8")
LIMIT = 240.0  # seconds of an undisturbed command; one takes 3 to 8
# What a record says of the run. Seconds, and what is computed beside the run, depend on the
# machine.
SAID = ("step", "loss", "grad_norm", "learning_rate", "eval/loss", "eval/accuracy")


class Ended(NamedTuple):
    """code: None where the command had to be killed at its limit."""

    code: int | None
    out: str
    err: str

    @property
    def hung(self) -> bool:
        return self.code is None

    @property
    def lines(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.strip()]

    @property
    def traceback(self) -> bool:
        return "Traceback" in self.err or "Fatal Python error" in self.err or "terminate called" in self.err


class Command:
    """A command that runs; `poll` answers its exit code, or None while it lives."""

    def __init__(self, pid: int, poll, out: Path, err: Path):
        self.pid, self._poll, self._out, self._err = pid, poll, out, err
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._poll()
        return self._code

    def send(self, number: int) -> bool:
        """Whether it was still there to be told. Its exit code is asked for first, so that no other
        process is hit."""
        if self.poll() is not None:
            return False
        os.kill(self.pid, number)
        return True

    def said(self) -> str:
        return self._out.read_text(errors="replace")

    def ready(self) -> bool:
        """Whether its own handlers are there, or will be: before that Python's start alone answers
        a signal."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return False
        masks = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
        return bool((int(masks["SigCgt"], 16) | int(masks["SigBlk"], 16)) >> (signal.SIGTERM - 1) & 1)

    def wait(self, limit: float = LIMIT) -> Ended:
        end = time.monotonic() + limit
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        code = self.poll()
        if code is None:
            os.kill(self.pid, signal.SIGKILL)
            while self.poll() is None:
                time.sleep(0.01)
        return Ended(code, self.said(), self._err.read_text(errors="replace"))


class Commands:
    """A context manager that starts commands in the folder `cwd`. Each command writes what it says
    to files of its own."""

    def __init__(self, folder: Path, devices: int = 1, cwd: Path | None = None):
        self._cwd = cwd
        self._folder, self._lock, self._count = folder, threading.Lock(), 0
        self._env = dict(os.environ, JAX_NUM_CPU_DEVICES=str(devices), COLUMNS="120")
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Commands":
        env = dict(self._env, OPENBLAS_NUM_THREADS="1", PYTHONPATH=str(runs.ROOT))
        program = [sys.executable, str(Path(__file__).with_name("chaos_server.py"))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._server = subprocess.Popen(program, env=env, cwd=self._cwd, text=True, **pipes)
        assert json.loads(self._server.stdout.readline()) == "ready"
        return self

    def __exit__(self, *_) -> None:
        self._server.stdin.close()
        self._server.wait()

    def _ask(self, **request):
        with self._lock:
            print(json.dumps(request), file=self._server.stdin, flush=True)
            return json.loads(self._server.stdout.readline())

    def start(self, *args, real: bool = False, file_bytes: int = 0) -> Command:
        """`launch.py ARGS`. real: as a process of its own; file_bytes: no file can grow beyond, as
        on a full disk."""
        with self._lock:
            self._count += 1
            out, err = (self._folder / f"{self._count}.{kind}" for kind in ("out", "err"))
        out.touch()
        err.touch()
        args = [str(a) for a in args]
        if not real:
            pid = self._ask(args=args, out=str(out), err=str(err), file_bytes=file_bytes)
            return Command(pid, functools.partial(self._ask, poll=pid), out, err)
        assert not file_bytes
        with open(out, "w") as stdout, open(err, "w") as stderr:
            process = subprocess.Popen(
                [sys.executable, str(runs.ROOT / "launch.py"), *args],
                env=self._env, cwd=self._cwd, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
            )  # fmt: skip
        return Command(process.pid, process.poll, out, err)

    def run(self, *args, **how) -> Ended:
        return self.start(*args, **how).wait()

    def ran(self, *args, **how) -> str:
        """What the command says, which must end well."""
        done = self.start(*args, **how).wait(800)
        assert done.code == 0, f"{args}\n{done.out}{done.err}"
        return done.out

    @contextlib.contextmanager
    def serving(self, port: str, *args, **how) -> Iterator[None]:
        """A server that is ready at this port; at the end it gets SIGTERM, and must end well."""
        server = self.start(*args, **how)
        try:
            _until_ready(server, f"http://127.0.0.1:{port}/ready")
            yield
            server.send(signal.SIGTERM)
            assert server.wait(60).code == 0
        finally:
            server.send(signal.SIGKILL)


def _until_ready(server: Command, url: str) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert server.poll() is None, f"the server ended: {server.wait().err}"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")


# ---------------------------------------------------------------- what a run left


def records(run_dir: Path) -> list[dict]:
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def rows(run_dir: Path) -> list[tuple]:
    """Every record in its order, by what it says of the run."""
    return [tuple((key, r[key]) for key in SAID if key in r) for r in records(run_dir)]


def parameters(config_path: Path, run_dir: Path) -> str:
    """A digest of the newest checkpoint: every array's bytes, the step, the position in the
    data."""
    config = dataclasses.replace(config_file.load(config_path), parallel=ParallelConfig(data=1))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    with store.open_store(run_dir / "checkpoints", config.checkpoint) as saves:
        found = store.restore(saves, abstract_state(config, mesh))
    digest = hashlib.sha256(json.dumps([found.step, found.data_state], sort_keys=True).encode())
    for leaf in jax.tree.leaves(found.state):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Whole:
    """The run that nothing disturbed, which every other one must equal.

    half: a finished run of 16 steps, to be copied; seconds: from the start of a forked command to
    its end.
    """

    path: Path
    rows: list[tuple]
    parameters: str
    half: Path
    evaluated: float
    seconds: float

    def train(self, run_dir: Path) -> tuple:
        return ("train", self.path, "--run_dir", run_dir, *OPTIONS)


def undisturbed(commands: Commands, folder: Path) -> Whole:
    path, run_dir, half = runs.write(folder), folder / "whole", folder / "half"
    done = commands.run("train", path, "--run_dir", half, *OPTIONS, "--train.steps", "16")  # fills the caches
    assert done.code == 0, done.err
    began = time.monotonic()
    done = commands.run("train", path, "--run_dir", run_dir, *OPTIONS)
    seconds = time.monotonic() - began
    assert done.code == 0, done.err
    evaluated = json.loads(commands.run("eval", half, "--json").out.splitlines()[-1])["eval/loss"]
    return Whole(path, rows(run_dir), parameters(path, run_dir), half, evaluated, seconds)
