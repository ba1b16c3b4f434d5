"""Real processes that form a job on this machine, with gloo between them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Job:
    """`count` processes of one command; `commands` gives each one its own."""

    def __init__(self, commands: Sequence[Sequence[str]], devices: int, environments: Sequence[dict] | None = None):
        self.folder = Path(tempfile.mkdtemp())
        self.processes = []
        for i, command in enumerate(commands):
            env = dict(os.environ, JAX_NUM_CPU_DEVICES=str(devices), COLUMNS="120")
            env |= environments[i] if environments else {}
            with open(self.folder / f"out{i}", "w") as out, open(self.folder / f"err{i}", "w") as err:
                self.processes.append(subprocess.Popen(list(map(str, command)), env=env, stdout=out, stderr=err))

    def out(self, i: int) -> str:
        return (self.folder / f"out{i}").read_text()

    def err(self, i: int) -> str:
        return (self.folder / f"err{i}").read_text()

    def wait(self, seconds: float = 400) -> list[int]:
        """Every exit code; AssertionError where one is still there after so many seconds."""
        end = time.monotonic() + seconds
        for i, process in enumerate(self.processes):
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"process {i} still runs after {seconds} s\n{self.everything()}") from None
        return [process.returncode for process in self.processes]

    def everything(self) -> str:
        return "\n".join(f"--- {i}: {p.poll()}\n{self.out(i)}\n{self.err(i)}" for i, p in enumerate(self.processes))

    def kill(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)  # SIGTERM would only ask
            process.wait()


@contextlib.contextmanager
def job(
    count: int,
    *args: str,
    devices: int = 2,
    extra: Sequence[Sequence[str]] | None = None,
    timeout: int = 60,
    environments: Sequence[dict] | None = None,
) -> Iterator[Job]:
    """Starts `launch.py ARGS` in `count` processes, which find each other by options.

    extra: further options for each process.
    """
    port = free_port()
    commands = [
        [
            sys.executable, ROOT / "launch.py", *args, *(extra[i] if extra else ()),
            "--cluster.coordinator", f"127.0.0.1:{port}", "--cluster.num_processes", count,
            "--cluster.process_id", i, "--cluster.timeout", timeout,
        ]
        for i in range(count)
    ]  # fmt: skip
    started = Job(commands, devices, environments)
    try:
        yield started
    finally:
        started.kill()


def ours(text: str) -> list[str]:
    """What the job said of itself; a busy machine may make the runtime log beside it."""
    return [line for line in text.splitlines() if line.startswith(("error: ", "interrupted "))]
