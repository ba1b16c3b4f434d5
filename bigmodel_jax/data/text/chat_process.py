"""Renders chat templates in a process of their own, with limits on time, memory and size.

The process runs data/text/chat_sandbox.py.
"""

import atexit
import functools
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from bigmodel_jax.runtime import ARENA

SECONDS = 0.5  # CPU time of one rendering; published templates take a thousandth of it
SECONDS_PER_CHARACTER = 1e-6  # added for long conversations
MOST = 1 << 24  # most characters of a rendered text


class Renderer:
    """Runs chat_sandbox.py: starts it when needed, and again after a template crashed it."""

    def __init__(self):
        self.lock, self.process = threading.Lock(), None
        atexit.register(self.stop)

    def start(self) -> subprocess.Popen:
        program = Path(__file__).with_name("chat_sandbox.py")
        # With the variables in ARENA, the process would reserve more memory than it may have.
        environment = {name: value for name, value in os.environ.items() if name not in ARENA}
        pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
        # With -P, Python does not search the program's folder for modules.
        return subprocess.Popen([sys.executable, "-P", program], env=environment, stderr=subprocess.DEVNULL, **pipes)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def render(self, template: str, fields: dict[str, Any]) -> str:
        """Return the rendered text. Raises a one-line ValueError on any failure or timeout."""
        try:
            asked = json.dumps(fields)
        except RecursionError:
            raise ValueError("chat template: a message is nested too deeply") from None
        seconds = SECONDS + SECONDS_PER_CHARACTER * len(asked)
        head = json.dumps({"template": template, "seconds": seconds, "most": MOST})
        # Only one request runs at a time, because answers in the pipe carry no numbers.
        with self.lock:
            answer = self._exchange(f'{head[:-1]}, "fields": {asked}}}\n'.encode())
        if not answer:
            raise ValueError(f"chat template: {self._end(seconds)}")
        answer = json.loads(answer)
        if "error" in answer:
            raise ValueError(f"chat template: {_one_line(answer['error'])}")
        if not answer["text"].isascii() and re.search("[\ud800-\udfff]", answer["text"]):
            raise ValueError("chat template: the text is not UTF-8 (it holds half of a surrogate pair)")
        return answer["text"]

    def _exchange(self, request: bytes) -> bytes:
        """Send a request, and return the answer; b"" where the process has ended instead."""
        if self.process is None or self.process.poll() is not None:
            self.process = self.start()
        try:
            self.process.stdin.write(request)
            self.process.stdin.flush()
            return self.process.stdout.readline()
        except BrokenPipeError:
            return b""
        except BaseException:
            self.stop()  # after an interrupt, the late answer must not be taken for that of a later request
            raise

    def _end(self, seconds: float) -> str:
        """Return why the process has ended."""
        code = self.process.wait()
        self.process.communicate()
        if code == -signal.SIGPROF:
            return f"it computes for more than {seconds:.2g} seconds"
        return f"it ended its process ({signal.strsignal(-code) if code < 0 else f'exit code {code}'})"


@functools.cache
def _renderer(pid: int) -> Renderer:
    """Return the renderer of the process `pid`. A forked process must not share its parent's."""
    if importlib.util.find_spec("jinja2") is None:
        raise ValueError("chat templates need the package jinja2: uv sync --extra pretrained")
    return Renderer()


def render(template: str, fields: dict[str, Any]) -> str:
    """Render `template` with JSON values. Raises a one-line ValueError for whatever goes wrong."""
    return _renderer(os.getpid()).render(template, fields)


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) < 300 else f"{text[:300]} ..."
