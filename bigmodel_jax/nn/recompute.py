"""Functions whose gradient keeps what they are made of, and computes the rest again."""

from collections.abc import Callable

import jax

from bigmodel_jax.nn import cpu


def from_arguments(fn: Callable) -> Callable:
    """`fn`, whose gradient keeps its arguments alone: for what is cheap beside reading what it would keep.

    Automatic differentiation keeps the factors of every product: of a norm two float32 arrays where x is one in bfloat16,
    of silu(gate) * up six where there are two, of a softmax four of its size. No compiler undoes that across a loop over
    layers. Not on a CPU device, whose steps are small and which computes slower than it reads.
    """
    again = jax.checkpoint(fn, prevent_cse=False)

    def call(*args):
        return fn(*args) if cpu.active() else again(*args)

    return call
