"""The rows of a program's cost add up to its whole, and what a number may be divided into."""

import jax
import jax.numpy as jnp
import pytest

from bigmodel_jax.plan import topology
from bigmodel_jax.plan.program import cost
from bigmodel_jax.plan.program.instructions import Code


def test_the_rows_of_a_loop_count_its_turns():
    """A loop runs one product seven times: the rows' seconds, FLOPs and bytes add up to the
    whole."""
    x, w = jnp.ones((16, 32)), jnp.ones((7, 32, 32))
    text = (
        jax.jit(lambda x, w: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0])
        .lower(x, w)
        .compile()
        .as_text()
    )
    found = cost.measure(Code(text), lambda dtype: 1e12, 1e9)
    assert sum(found.flops.values()) == 7 * 2 * 16 * 32 * 32
    assert sum(row[1] for row in found.rows) == pytest.approx(found.expected)
    assert sum(row[2] for row in found.rows) == pytest.approx(sum(found.flops.values()))
    assert sum(row[3] for row in found.rows) == pytest.approx(found.bytes)


def test_divisors():
    assert topology.divisors(12) == [1, 2, 3, 4, 6, 12]
    assert topology.divisors(1) == [1]
    assert topology.divisors(7) == [1, 7]
