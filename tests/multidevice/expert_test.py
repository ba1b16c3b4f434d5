"""Experts on devices of their own give the one-device run, and tokens travel to them by all-to-all.

Tolerances, batches and steps are those of pipeline_test.py.
"""

import dataclasses

import pytest
from pipeline_test import CASES, LENGTH, ROWS, check, program, text, tiny

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.nn import moe
from bigmodel_jax.objectives import NextToken

CASES |= {
    "mixtral_experts": (tiny("mixtral", router_z_loss=0.01), NextToken(), text),
    "mixtral_capacity": (tiny("mixtral", capacity_factor=1.0), NextToken(), text),
    "qwen3_moe_experts": (tiny("qwen3_moe"), NextToken(), text),
    "deepseek_experts": (tiny("deepseek", num_mtp_layers=1), NextToken(), text),
}
LAYOUTS = {
    "expert": ParallelConfig(data=1, expert=4),
    "expert_data": ParallelConfig(data=2, expert=4),
    "expert_fsdp": ParallelConfig(data=1, fsdp=2, expert=4),
    "expert_tensor": ParallelConfig(data=1, expert=4, tensor=2),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "name"),
    [("mixtral_experts", name) for name in LAYOUTS]
    + [("mixtral_capacity", name) for name in ("expert_fsdp", "expert_tensor")]
    + [("qwen3_moe_experts", "expert"), ("deepseek_experts", "expert_fsdp")],
)
def test_experts_on_their_devices_equal_one_device(case, name):
    check(case, LAYOUTS[name])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["mixtral_experts", "mixtral_capacity"])
def test_experts_and_stages_equal_one_device(case):
    check(case, ParallelConfig(stage=2, data=1, expert=2, tensor=2, pipeline_microbatches=4))


def owed(case: str, parallel: ParallelConfig) -> int:
    """Bytes of a device's all-to-alls in a step, float32, its own share included: tokens there and back in each layer, and
    their gradients back and there.

    Capacity: a device holds ROWS / shards rows, with C places of each for each of E experts. Dropless, on a backend without
    a ragged exchange: min(k, E / e) places for each of its tokens at each of the e devices.
    """
    cfg = CASES[case][0]
    rows, E, k, e = ROWS // (parallel.fsdp * parallel.expert), cfg.num_experts, cfg.experts_per_token, parallel.expert
    if cfg.capacity_factor:
        places = rows * E * moe.places(LENGTH, k, E, cfg.capacity_factor)
    else:
        places = rows * LENGTH * e * min(k, E // e)
    return cfg.num_layers * 4 * places * cfg.embed_dim * 4


@pytest.mark.slow
@pytest.mark.parametrize("case", ["mixtral_experts", "mixtral_capacity"])
def test_tokens_travel_and_no_weight_does(case):
    parallel = LAYOUTS["expert_fsdp"]
    found = program(case, parallel)
    travelling = [c for c in found if c.kind == "all-to-all"]
    assert {c.axes for c in travelling} == {("expert",)}
    assert sum(c.count * c.bytes for c in travelling) == pytest.approx(owed(case, parallel), rel=0.05)
    for c in found:
        if c.kind == "all-gather" and "expert" in c.axes:  # how many rows each device sends each expert
            assert c.bytes == 4 * parallel.expert * CASES[case][0].num_experts, c


def test_more_devices_than_experts_is_one_line():
    with pytest.raises(ValueError, match=r"model.num_experts = 4 is not divisible by parallel.expert = 3"):
        CASES["mixtral_experts"][0].validate(ParallelConfig(expert=3))


def test_tokens_stay_where_the_batch_is_not_cut_over_experts():
    from bigmodel_jax.nn import expert_exchange

    mesh = sharding.make_mesh(LAYOUTS["expert_data"])
    with sharding.use(mesh, Rules()):
        assert expert_exchange.axes(4, 8) == ("expert",)
        assert expert_exchange.axes(4, 1) == ()  # one row: generation
    with sharding.use(mesh, dataclasses.replace(Rules(), batch=("data", "fsdp"))):
        assert expert_exchange.axes(4, 8) == ()
