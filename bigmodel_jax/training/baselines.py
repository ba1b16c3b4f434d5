"""Computes simple baselines on a run's data in a background thread that nothing waits for."""

import logging
import os
import sys
import threading
from collections.abc import Callable

log = logging.getLogger("bigmodel_jax")

# The thread's niceness: it gets a quarter of a busy core, and most of an idle one.
NICENESS = 5


class Baselines:
    """Runs `compute` in a daemon thread. The end of the process ends it at any point."""

    def __init__(self, compute: Callable[[], dict[str, float]]):
        self._compute = compute
        self._found: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="baselines", daemon=True)
        self._thread.start()

    def so_far(self) -> dict[str, float]:
        """The baselines by metric name. The table is empty until all of them are computed."""
        return dict(self._found)

    def _run(self) -> None:
        if sys.platform == "linux":  # only Linux threads have their own priority
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            self._found = self._compute()
        except (ValueError, OSError, MemoryError) as error:
            log.warning("baselines are left out: %s", error)
