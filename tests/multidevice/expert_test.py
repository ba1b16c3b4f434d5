"""Experts on devices of their own give the one-device run, and tokens travel to them by all-to-all.

Tolerances, batches and steps are those of pipeline_test.py.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import few
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.nn.experts import expert_exchange, moe
from bigmodel_jax.objectives import NextToken
from pipeline_test import CASES, LENGTH, ROWS, check, program, text, tiny

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


@pytest.mark.few("mixtral_experts-expert_tensor")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "name"),
    # Slow: DeepSeek routes by groups and biases, Mixtral has a capacity or none. The rest of the
    # grid is exhaustive.
    [
        *[
            ("mixtral_experts", "expert_tensor"),
            ("mixtral_capacity", "expert_fsdp"),
            ("deepseek_experts", "expert_fsdp"),
        ],
        *(
            pytest.param(*pair, marks=pytest.mark.exhaustive)
            for pair in [
                *(("mixtral_experts", name) for name in LAYOUTS if name != "expert_tensor"),
                *[("mixtral_capacity", "expert_tensor"), ("qwen3_moe_experts", "expert")],
            ]
        ),
    ],
)
def test_experts_on_their_devices_equal_one_device(case, name, note):
    note("experts", case, LAYOUTS[name], *check(case, LAYOUTS[name]))


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", few(("mixtral_experts", "mixtral_capacity"), "mixtral_experts"))
def test_experts_and_stages_equal_one_device(case, note):
    parallel = ParallelConfig(stage=2, data=1, expert=2, tensor=2, pipeline_microbatches=4)
    note("experts, gpipe", case, parallel, *check(case, parallel))


def owed(case: str, parallel: ParallelConfig) -> int:
    """Bytes that a device exchanges in a step by all-to-all, in float32, its own share included. In
    each layer the tokens travel there and back, and so do their gradients. Capacity: a device holds
    ROWS / shards rows, each with C places for each of E experts. Dropless, on a backend without a
    ragged exchange: each token has min(k, E / e) places at each of the e devices."""
    cfg = CASES[case][0]
    rows, E, k, e = ROWS // (parallel.fsdp * parallel.expert), cfg.num_experts, cfg.experts_per_token, parallel.expert
    if cfg.capacity_factor:
        places = rows * E * moe.places(LENGTH, k, E, cfg.capacity_factor)
    else:
        places = rows * LENGTH * e * min(k, E // e)
    return cfg.num_layers * 4 * places * cfg.embed_dim * 4


@pytest.mark.slow
@pytest.mark.parametrize("case", few(["mixtral_experts", "mixtral_capacity"], "mixtral_experts"))
def test_tokens_travel_and_no_weight_does(case, note):
    parallel = LAYOUTS["expert_fsdp"]
    found = program(case, parallel)
    travelling = [c for c in found if c.kind == "all-to-all"]
    assert {c.axes for c in travelling} == {("expert",)}
    moved, due = sum(c.count * c.bytes for c in travelling), owed(case, parallel)
    note("experts", case, parallel, moved=[("expert", moved, due, "4 L t")])
    assert moved == pytest.approx(due, rel=0.05)
    for c in found:
        if c.kind == "all-gather" and "expert" in c.axes:  # how many rows each device sends each expert
            assert c.bytes == 4 * parallel.expert * CASES[case][0].num_experts, c


def test_more_devices_than_experts_is_one_line():
    with pytest.raises(ValueError, match=r"model.num_experts = 4 is not divisible by parallel.expert = 3"):
        CASES["mixtral_experts"][0].validate(ParallelConfig(expert=3))


def test_tokens_stay_where_the_batch_is_not_cut_over_experts():
    mesh = sharding.make_mesh(LAYOUTS["expert_data"])
    with sharding.use(mesh, Rules()):
        assert expert_exchange.axes(4, 8) == ("expert",)
        assert expert_exchange.axes(4, 1) == ()  # one row: generation
    with sharding.use(mesh, dataclasses.replace(Rules(), batch=("data", "fsdp"))):
        assert expert_exchange.axes(4, 8) == ()


@pytest.mark.slow
# Without a bound, every other test of this file does it.
@pytest.mark.parametrize("buffer", few((1.0, 0.0, 1.25), 1.0))
def test_a_device_takes_the_first_rows_that_its_buffer_has_room_for(buffer):
    e, E, B, T, k, D = 4, 2, 2, 6, 3, 5  # devices, experts on each, a device's rows and tokens, choices
    rng = np.random.default_rng(0)
    x = rng.normal(size=(e * B, T, D)).astype(np.float32)
    scores = rng.random((e * B, T, e * E)) + (np.arange(e * E) < 3)  # most choices are of the first three experts
    chosen = np.argsort(-scores, axis=-1)[..., :k].astype(np.int32)

    def times_expert(rows, expert, sizes):
        first = jax.lax.axis_index("expert") * E
        in_group = jnp.arange(len(rows)) < sizes.sum()
        return jnp.where(in_group[:, None], rows * (first + expert + 1)[:, None], 0)

    mesh = sharding.make_mesh(ParallelConfig(data=1, expert=e), jax.devices()[:e])
    with sharding.use(mesh, Rules()):
        run = functools.partial(expert_exchange.apply, times_expert, E=E, axis=("expert",), buffer=buffer)
        cut = P("expert")
        got = jax.shard_map(run, mesh=mesh, in_specs=(cut, cut), out_specs=cut, check_vma=False)(x, chosen)

    room = dict.fromkeys(range(e), math.ceil(buffer * B * T * k) if buffer else e * B * T * k)
    want = np.zeros((e * B, T, k, D), np.float32)
    for device in range(e):  # the order in which rows arrive: by sender, expert and token
        of = [(chosen[b, t, i], b, t, i) for b in range(device * B, device * B + B) for t in range(T) for i in range(k)]
        for expert, b, t, i in sorted(of):
            if room[expert // E]:
                room[expert // E] -= 1
                want[b, t, i] = x[b, t] * (expert + 1)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert (want == 0).any() == bool(buffer)
