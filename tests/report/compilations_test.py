"""A recompilation that is forced is counted, and a first compilation is not."""

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.report.compilations import Recompilations


def test_only_a_program_that_is_compiled_again_counts():
    counter = Recompilations()
    try:

        @jax.jit
        def twice_for_the_counter(x):
            return 2 * x

        twice_for_the_counter(np.ones(3))
        twice_for_the_counter(np.zeros(3))
        assert counter.count() == 0
        twice_for_the_counter(np.ones(4))  # another shape
        twice_for_the_counter(np.ones(4, np.int32))  # another type
        assert counter.count() == 2
    finally:
        counter.close()
    twice_for_the_counter(jnp.ones(5))
    assert counter.count() == 2


def test_an_operation_outside_a_program_does_not_count():
    counter = Recompilations()
    try:
        for rows in range(3, 7):  # as Orbax slices leaves of every shape for a first save
            jax.lax.slice(np.ones((rows, 11)), (0, 0), (1, 7)).block_until_ready()
        assert counter.count() == 0
    finally:
        counter.close()
