"""Grouped products on Hopper: where they are used, and how their work is counted; what they compute
takes such a GPU."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import sharding
from bigmodel_jax.nn.experts import hopper
from bigmodel_jax.plan.program import instructions
from bigmodel_jax.report.throughput import count_flops

N, E, D, F = 512, 4, 128, 256


def shapes(dtype=jnp.bfloat16, dim=D):
    return jax.ShapeDtypeStruct((N, dim), dtype), jax.ShapeDtypeStruct((E, dim, F), dtype)


def mesh(capability: str, stages: int = 1):
    device = types.SimpleNamespace(compute_capability=capability)
    return types.SimpleNamespace(devices=np.array([device]), shape={"stage": stages})


@pytest.mark.parametrize(
    ("there", "arrays", "used"),
    [
        (mesh("9.0"), shapes(), True),
        (mesh("8.0"), shapes(), False),
        (mesh("9.0", stages=2), shapes(), False),
        (mesh("9.0"), shapes(jnp.float32), False),
        (mesh("9.0"), shapes(dim=96), False),
        (None, shapes(), False),
    ],
)
def test_only_on_hopper_in_whole_blocks_of_bfloat16(monkeypatch, there, arrays, used):
    monkeypatch.setattr(sharding, "current_mesh", lambda: there)
    assert hopper.usable(*arrays) is used


def test_a_cpu_has_no_such_kernel():
    with sharding.use(sharding.make_mesh(sharding.ParallelConfig()), sharding.Rules(), sharding.ParallelConfig()):
        assert not hopper.usable(*shapes())


def test_its_products_count_as_those_of_each_row_with_one_matrix():
    sizes = jax.ShapeDtypeStruct((E,), jnp.int32)
    assert count_flops(hopper.grouped_product, *shapes(), sizes) == 2 * N * D * F


@pytest.mark.parametrize(
    ("result", "operands"),
    [
        (f"bf16[{N},{F}]", ["s32[4]", f"bf16[{N},{D}]", f"bf16[{E},{D},{F}]"]),
        (f"bf16[{N},{D}]", ["s32[4]", f"bf16[{N},{F}]", f"bf16[{E},{D},{F}]"]),
        (f"bf16[{E},{D},{F}]", ["s32[4]", "s32[4]", f"bf16[{N},{D}]", f"bf16[{N},{F}]"]),
    ],
)
def test_a_plan_counts_its_three_products(result, operands):
    found = instructions._grouped(types.SimpleNamespace(result=result), [s for s in operands if s.startswith("bf16")])
    assert found == (2.0 * N * D * F, "bf16")
