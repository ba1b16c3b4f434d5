"""Several processes, one program: what process 0 alone does, and what all must agree on before they go on.

In a run of one process each function is what its plain body would be.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils


def first() -> bool:
    """Whether this is process 0, which writes and prints."""
    return jax.process_index() == 0


def from_first(value: int) -> int:
    """Process 0's value in every process: two hosts may see a shared folder at different moments."""
    return int(multihost_utils.broadcast_one_to_all(np.int64(value))) if jax.process_count() > 1 else value


def failed(here: bool) -> int | None:
    """The first process in which something failed, the same answer in all; None where it went well everywhere."""
    if jax.process_count() == 1:
        return 0 if here else None
    found = np.flatnonzero(multihost_utils.process_allgather(np.asarray(here)))
    return int(found[0]) if found.size else None


def in_turn[T](name: str, make: Callable[[], T]) -> T:
    """`make()` in process 0 and then in the others, which find on disk what it has prepared."""
    made = make() if first() else None
    multihost_utils.sync_global_devices(name)
    return made if first() else make()
