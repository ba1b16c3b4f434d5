"""Several processes, one program: what process 0 alone does, and what all must agree on before they go on.

Through JAX's coordination service and not by collectives: a process may then be late by minutes, because it prepares
the data or compiles, where a collective of gloo's gives up after 30 s. In a run of one process each function is what its
plain body would be. Every process makes these calls in the same order.
"""

import functools
import itertools
import json
from collections.abc import Callable

import jax

WAIT_MS = 24 * 3600 * 1000  # a process that dies is missed by cluster/peers.py, not by a timeout here
_calls = itertools.count()


def _service():
    from jax._src import distributed

    return distributed.global_state.client


def place() -> tuple[int, int]:
    """(this process's number, how many there are), known without the devices, which are left alone."""
    from jax._src import distributed

    return distributed.global_state.process_id, distributed.global_state.num_processes


def first() -> bool:
    """Whether this is process 0, which writes and prints."""
    return jax.process_index() == 0


def meet(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        _service().wait_at_barrier(f"bigmodel_jax/{name}/{next(_calls)}", WAIT_MS)


def compiled_together(jitted: Callable) -> Callable:
    """The jitted function, which no process runs before all have compiled it for arguments of these shapes."""
    if jax.process_count() == 1:
        return jitted
    known = {}

    @functools.wraps(jitted)
    def run(*arguments, **more):
        shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves((arguments, more)))
        if shapes not in known:
            known[shapes] = jitted.lower(*arguments, **more).compile()
            meet("compiled")
        return known[shapes](*arguments, **more)

    return run


def from_first[T](value: T) -> T:
    """Process 0's value, a number or a text, in every process: two hosts may see a folder at different moments."""
    if jax.process_count() == 1:
        return value
    key = f"bigmodel_jax/value/{next(_calls)}"
    if first():
        _service().key_value_set(key, json.dumps(value))
        return value
    return json.loads(_service().blocking_key_value_get(key, WAIT_MS))


def failed(here: bool) -> int | None:
    """The first process in which something failed, the same answer in all; None where it went well everywhere."""
    if jax.process_count() == 1:
        return 0 if here else None
    folder = f"bigmodel_jax/failed/{next(_calls)}/"
    if here:
        _service().key_value_set(f"{folder}{jax.process_index()}", "")
    meet("failed")
    return min((int(key.rpartition("/")[2]) for key, _ in _service().key_value_dir_get(folder)), default=None)


def gather(name: str, turn: str, value: str) -> dict[int, str]:
    """{process: value} of every process that gives one that is not empty, the same answer in all.

    A thread beside the main one may call it, under a `name` of its own; `turn` is another one at each call.
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
    """The name or address under which this process knows process 0's host; "" where there is one process alone."""
    from jax._src import distributed

    address = distributed.global_state.coordinator_address or ""
    return address.rpartition(":")[0].strip("[]")


def in_turn[T](name: str, make: Callable[[], T]) -> T:
    """`make()` in process 0 and then in the others, which find on disk what it has prepared."""
    if place()[1] == 1:
        return make()
    made = make() if first() else None
    meet(name)
    return made if first() else make()
