"""What simple methods reach on a run's data, computed beside the run: nothing waits for it, neither a signal nor the end."""

import logging
import os
import sys
import threading
from collections.abc import Callable

log = logging.getLogger("bigmodel_jax")

# Of a thread beside the steps: a quarter of a busy core, most of an idle one.
NICENESS = 5


class Baselines:
    """Runs `compute` in a thread that ends with the process, wherever it stands."""

    def __init__(self, compute: Callable[[], dict[str, float]]):
        self._compute = compute
        self._found: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="baselines", daemon=True)
        self._thread.start()

    def so_far(self) -> dict[str, float]:
        """By metric name; empty until all are known."""
        return dict(self._found)

    def _run(self) -> None:
        if sys.platform == "linux":  # where threads have a priority of their own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            self._found = self._compute()
        except (ValueError, OSError, MemoryError) as error:
            log.warning("baselines are left out: %s", error)
