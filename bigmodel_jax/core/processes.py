"""Coordination of several processes of one program: what only process 0 does, and what all agree
on.

These functions use JAX's coordination service and not collectives. A process that prepares data or
compiles may be minutes late, and a gloo collective gives up after 30 s. With one process, every
function returns at once. All processes must make these calls in the same order.
"""

import functools
import itertools
import json
from collections.abc import Callable

import jax

WAIT_MS = 24 * 3600 * 1000  # no timeout in practice: cluster/peers.py notices a dead process
_calls = itertools.count()


def _service():
    from jax._src import distributed

    return distributed.global_state.client


def place() -> tuple[int, int]:
    """(this process's index, number of processes), without starting the backend."""
    from jax._src import distributed

    return distributed.global_state.process_id, distributed.global_state.num_processes


def first() -> bool:
    """Whether this is process 0, the one that writes and prints."""
    return jax.process_index() == 0


def meet(name: str) -> None:
    """A barrier: returns when every process has called it."""
    if jax.process_count() > 1:
        _service().wait_at_barrier(f"bigmodel_jax/{name}/{next(_calls)}", WAIT_MS)


def compiled_together(jitted: Callable) -> Callable:
    """Wraps a jitted function so that no process runs it before all have compiled it for these
    shapes."""
    if jax.process_count() == 1:
        return jitted
    known = {}

    @functools.wraps(jitted)
    def run(*arguments, **more):
        # jit would compile again for other shapes, and processes must compile together.
        shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves((arguments, more)))
        if shapes not in known:
            known[shapes] = jitted.lower(*arguments, **more).compile()
            meet("compiled")
        return known[shapes](*arguments, **more)

    return run


def from_first[T](value: T) -> T:
    """Process 0's value, a number or a text, in every process.

    Processes use it where they may see different values: two hosts may see a folder at different
    times.
    """
    if jax.process_count() == 1:
        return value
    key = f"bigmodel_jax/value/{next(_calls)}"
    if first():
        _service().key_value_set(key, json.dumps(value))
        return value
    return json.loads(_service().blocking_key_value_get(key, WAIT_MS))


def failed(here: bool) -> int | None:
    """The lowest index of a process in which something failed, the same in all; None if none
    failed."""
    if jax.process_count() == 1:
        return 0 if here else None
    # Keys of the coordination service cannot be reused, so each call counts up.
    folder = f"bigmodel_jax/failed/{next(_calls)}/"
    if here:
        _service().key_value_set(f"{folder}{jax.process_index()}", "")
    meet("failed")
    return min((int(key.rpartition("/")[2]) for key, _ in _service().key_value_dir_get(folder)), default=None)


def gather(name: str, turn: str, value: str) -> dict[int, str]:
    """{process: value} of all processes with a value that is not empty, the same in all processes.

    Threads beside the main one may call it, with a `name` of their own. `turn` must differ from
    call to call.
    """
    if jax.process_count() == 1:
        return {0: value} if value else {}
    folder = f"bigmodel_jax/{name}/{turn}/"
    if value:
        _service().key_value_set(f"{folder}{jax.process_index()}", value)
    _service().wait_at_barrier(f"bigmodel_jax/{name}", WAIT_MS)
    found = {int(key.rpartition("/")[2]): text for key, text in _service().key_value_dir_get(folder)}
    return dict(sorted(found.items()))


def coordinator_host() -> str:
    """The host name or address of process 0 as this process knows it; "" with a single process."""
    from jax._src import distributed

    address = distributed.global_state.coordinator_address or ""
    return address.rpartition(":")[0].strip("[]")


def in_turn[T](name: str, make: Callable[[], T]) -> T:
    """Calls `make()` in process 0 first and then in the others, which find its results on disk."""
    if place()[1] == 1:
        return make()
    made = make() if first() else None
    meet(name)
    return made if first() else make()
