"""Count how often a process recompiles a program.

A program is compiled again when a shape, a dtype or a constant has changed.
"""

import threading

import jax
from jax.extend.core import Primitive, primitives

# Operations outside a jitted program are compiled once for each shape. For example, Orbax slices
# the arrays of its first save. Such compilations do not count.
OPERATIONS = {f"jit({p.name})" for p in vars(primitives).values() if isinstance(p, Primitive)}
COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX emits this event for every program, even on a cache hit


class Recompilations:
    """Counts recompilations until `close`.

    Programs are told apart by name. The first compilation of each name does not count.
    """

    def __init__(self):
        # JAX calls `_heard` in the thread that compiles. The lock guards the names and the count.
        self._lock, self._known, self._count = threading.Lock(), set(), 0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def count(self) -> int:
        """Recompilations so far."""
        with self._lock:
            return self._count

    def close(self) -> None:
        """Stop counting."""
        jax.monitoring.unregister_event_duration_listener(self._heard)

    def _heard(self, event: str, _seconds: float, **facts: str) -> None:
        name = str(facts.get("fun_name"))
        if event != COMPILED or name in OPERATIONS:
            return
        with self._lock:
            self._count += name in self._known
            self._known.add(name)
