"""Run the profiler over the steps of `train.profile`, and write the profile after the loop.

The profiler starts and stops at the window's edges. Process 0 profiles its own first device. The
compiled program is the same with and without a profile.
"""

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bigmodel_jax.config import Config
from bigmodel_jax.core import files, processes
from bigmodel_jax.profiling import rates, record, trace, window
from bigmodel_jax.profiling.operations import operations
from bigmodel_jax.report.profile_page import FILE, PAGE, TRACE, build_profile_page

log = logging.getLogger("bigmodel_jax")


class Profiled(Exception):
    """Ends a run that exists only for its profile, once the profiled steps are done."""


def taken(run_dir: Path, text: str) -> bool:
    """Whether the run's folder already has the profile of this window.

    If it has, a resumed run may start after the window.
    """
    try:
        return json.loads((run_dir / FILE).read_text(encoding="utf-8")).get("window") == text.strip()
    except (OSError, ValueError, AttributeError):
        return False


def check(config: Config, run_dir: Path, start: int) -> None:
    """Raise ValueError where `train.profile` names steps that this process will not run."""
    text = config.train.profile
    taking = start if not (text and taken(run_dir, text)) else 0
    window.check(text, config.train.steps, taking)


class Recorder:
    """Profiles a window of steps. The loop calls `begin`, `end` and `close`.

    programs: the compiled programs that a step may run. alone: whether the run ends with its
    window, by raising `Profiled`. say: prints one line.
    """

    def __init__(self, config: Config, run_dir: Path, programs: Any, *, alone: bool, say: Callable[[str], None]):
        text = config.train.profile
        # A resumed run keeps the profile that it has. The verb profile takes a new one.
        wanted = bool(text) and not (taken(run_dir, text) and not alone)
        self.window = window.parse(text) if wanted else None
        self._first, self._alone, self._say = processes.first(), alone, say
        self._run_dir, self._programs = run_dir, programs
        self._marks, self._step = contextlib.ExitStack(), contextlib.ExitStack()
        self._tracing = self._done = False
        self._steps, self._waited, self._wall = 0, 0.0, 0.0

    def begin(self, step: int, state: Any) -> None:
        """Call this before each step. `step` is the number of steps that are done."""
        if self.window is None or self._done or not self._first:
            return
        if step == self.window.first and not self._tracing:
            self._start(state)
        if self._tracing:
            self._step.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=step + 1))

    def end(self, step: int, state: Any, wait: float) -> float:
        """Call this after `step` was dispatched.

        wait: seconds that the loop waited for the batch. Returns the seconds that stopping the
        profiler took.
        """
        if self.window is None or self._done:
            return 0.0
        began = time.perf_counter()
        if self._tracing:
            self._step.close()
            self._steps, self._waited = self._steps + 1, self._waited + wait
        if step != self.window.last:
            return 0.0
        # Steps are dispatched asynchronously, so the window ends when the device has finished.
        jax.block_until_ready(state)
        ended = time.perf_counter()
        self._done = True
        if self._tracing:
            self._wall = ended - self._wall
            self._stop()
        if self._alone:
            raise Profiled
        # The wait for the device belongs to the steps, so only the time after it is returned.
        return time.perf_counter() - max(began, ended)

    def _start(self, state: Any) -> None:
        # Wait for earlier steps, so that they do not run inside the trace.
        jax.block_until_ready(state)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # Python calls are many, and the profile does not use them
        jax.profiler.start_trace(str(self._run_dir / TRACE), profiler_options=options)
        self._tracing, self._wall = True, time.perf_counter()
        self._marks.enter_context(jax.profiler.TraceAnnotation(trace.MARK))

    def _stop(self) -> None:
        self._marks.close()
        jax.profiler.stop_trace()
        self._tracing = False

    def close(self) -> None:
        """Write the page if all steps of the window were traced.

        If the disk is full, the run loses its profile and goes on.
        """
        if self._tracing:
            self._step.close()
            self._stop()
            log.warning(
                "train.profile = '%s': the steps ended before step %d, so there is no page",
                self.window,
                self.window.last,
            )
        elif self._steps:
            try:
                self._write()
            except OSError as error:
                log.warning("train.profile: %s: %s; there is no profile", error.filename, error.strerror)

    def _write(self) -> None:
        seen = trace.read(trace.newest(self._run_dir / TRACE))
        device = jax.local_devices()[0]
        rate = rates.of_device(device)
        # Both names may stand for one program.
        texts = [p.as_text() for p in dict.fromkeys((self._programs.step, self._programs.watched)) if _has_text(p)]
        known = [(_name(text), operations(text, rate.peak, rate.bandwidth)) for text in texts]
        found = record.make(seen, known, self._steps) | {
            "window": str(self.window),
            "name": self._run_dir.name,
            "machine": device.device_kind,
            "processes": jax.process_count(),
            "devices": jax.device_count(),
            "rates": rate.source,
            "data_wait_seconds": self._waited / self._steps,
            "wall_seconds": self._wall / self._steps,
        }
        files.replace(self._run_dir / FILE, json.dumps(found, indent=1) + "\n")
        build_profile_page(found, self._run_dir / PAGE)
        self._say(f"Profile: {self._run_dir / PAGE}")


def _has_text(program: Any) -> bool:
    return hasattr(program, "as_text")


def _name(text: str) -> str:
    return re.match(r"HloModule ([^\s,]+)", text)[1]
