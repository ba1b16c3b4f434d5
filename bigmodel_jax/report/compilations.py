"""How often a process compiled a program that it had compiled before: a shape, a type or a constant has changed."""

import threading

import jax
from jax.extend.core import Primitive, primitives

# One operation outside a program is compiled for each shape it meets: Orbax slices the leaves of a first save so.
OPERATIONS = {f"jit({p.name})" for p in vars(primitives).values() if isinstance(p, Primitive)}
COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX records it for each program, found in its cache or not


class Recompilations:
    """Counts from its making until `close`. A program is known by its name, so its first compilation is not counted."""

    def __init__(self):
        self._lock, self._known, self._count = threading.Lock(), set(), 0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def count(self) -> int:
        with self._lock:
            return self._count

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._heard)

    def _heard(self, event: str, _seconds: float, **facts: str) -> None:
        name = str(facts.get("fun_name"))
        if event != COMPILED or name in OPERATIONS:
            return
        with self._lock:
            self._count += name in self._known
            self._known.add(name)
