"""Functions whose gradient keeps their arguments and recomputes everything else."""

from collections.abc import Callable

import jax

from bigmodel_jax.nn import cpu


def from_arguments(fn: Callable) -> Callable:
    """`fn` whose gradient keeps its arguments alone and computes `fn` again.

    This pays if computing `fn` takes less time than reading its residuals. Autodiff keeps the
    factors of every product: two float32 arrays for a norm whose input is one bfloat16 array, six
    arrays for silu(gate) * up, and four arrays of a softmax's size. No compiler removes them across
    a loop over layers. On a CPU device `fn` is used unchanged: its steps are small, and it computes
    slower than it reads.
    """
    again = jax.checkpoint(fn, prevent_cse=False)

    def call(*args):
        return fn(*args) if cpu.active() else again(*args)

    return call
