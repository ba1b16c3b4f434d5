"""Seconds of collectives on a torus, and how they add up to a step."""

import math

import pytest

from bigmodel_jax.plan import roofline
from bigmodel_jax.plan.chips import BY_NAME
from bigmodel_jax.plan.program.hlo import Collective
from bigmodel_jax.plan.topology import parse


def collective(kind="all-gather", size=1e9, group=16, **fields) -> Collective:
    return Collective(kind, int(size), ("fsdp",), tuple(range(group)), 1, 1, ("bf16[1]",), "", **fields)


def places(*ranges):
    """[slice 0, x, y, ...] of every place in a box."""
    out = [[]]
    for n in ranges:
        out = [[*p, i] for p in out for i in range(n)]
    return [[0, *p] for p in out]


V5E = parse("v5e:16x16")
RING = places(16, 1)


def test_a_ring_of_sixteen_sends_both_ways_over_one_axis():
    # 1 GB gathered over 16: each sends 15/16 of it, over two directions of 50 GB/s.
    assert roofline.seconds(collective(), RING, V5E) == ("ici", pytest.approx(1e9 * 15 / 16 / 100e9))


def test_both_axes_of_the_torus_are_twice_as_fast():
    whole = roofline.seconds(collective(group=256), places(16, 16), V5E)[1]
    assert whole == pytest.approx(1e9 * 255 / 256 / 200e9)


def test_a_line_has_one_way_to_its_ends():
    line = roofline.seconds(collective(group=4), places(4, 1), V5E)[1]
    assert line == pytest.approx(1e9 * 3 / 4 / 50e9)


def test_an_all_reduce_costs_twice_a_gather():
    gather, reduce = (roofline.seconds(collective(kind), RING, V5E)[1] for kind in ("all-gather", "all-reduce"))
    assert reduce == pytest.approx(2 * gather)


def test_an_all_to_all_on_a_ring_is_a_quarter_of_the_gather_of_the_same_whole_array():
    # The gather makes the whole array on each device; of the all-to-all each device holds a 16th.
    gather = roofline.seconds(collective(), RING, V5E)[1]
    exchange = roofline.seconds(collective("all-to-all", size=1e9 / 16), RING, V5E)[1]
    assert exchange == pytest.approx(gather / 4)


def test_between_slices_the_data_centre_network_counts():
    across = collective("all-reduce", group=2, across=True)
    assert roofline.seconds(across, [[0, 0, 0], [1, 0, 0]], parse("v5e:16x16", 2)) == (
        "dcn",
        pytest.approx(1e9 / 3.125e9),
    )


def test_two_devices_of_a_chip_share_its_links():
    cube = places(4, 4, 4)
    one, two = (roofline.seconds(collective(group=64), cube, parse(name))[1] for name in ("v5p:4x4x4", "tpu7x:4x4x4"))
    assert two == pytest.approx(2 * one)


def test_gpus_of_one_host_use_nvlink_and_of_several_the_network():
    h100 = parse("h100:1x8x8")
    inside = roofline.seconds(collective(group=8), [[0]] * 8, h100)
    assert inside == ("ici", pytest.approx(1e9 * 7 / 8 / 450e9))
    apart = roofline.seconds(collective(group=8), [[host] for host in range(8)], h100)
    assert apart == ("dcn", pytest.approx(1e9 * 7 / 8 / 50e9))
    # All 64: a host gets what the others have once, over eight cards.
    network, seconds = roofline.seconds(collective(group=64), [[i // 8] for i in range(64)], h100)
    assert (network, seconds) == ("dcn", pytest.approx(1e9 * 7 / 8 / (8 * 50e9)))


def test_a_step_hides_what_runs_beside_it_and_waits_for_the_rest():
    line = roofline.roofline(1.0, 0.5, 1.2, 1.4, [("ici", True, 0.9), ("ici", False, 0.3), ("dcn", True, 1.5)])
    assert (line.compute, line.hbm, line.ici, line.dcn) == (1.0, 0.5, pytest.approx(1.2), 1.5)
    assert line.hidden == 1.5
    assert line.step == pytest.approx(1.5 + 0.3)
    assert line.exposed == pytest.approx(1.4 + 1.2 + 1.5)
    assert line.bound == "dcn"
    alone = roofline.roofline(1.0, 0.5, 1.2, 1.4, [])
    assert (alone.hidden, alone.step) == (1.2, 1.4)


# ---- every chip and link, against numbers written here from the data sheets ----
GB, T = 1e9, 1e12
# JAX devices a chip; FLOP/s of a chip in bfloat16, int8, float8, float32; bytes/s of HBM, of a link
# one way, of a chip's share of the data-centre network; links; GiB that a device's program may use.
SHEETS = {
    "v4": (1, (275 * T, 275 * T, 275 * T, 275 * T), (1228 * GB, 50 * GB, 6.25 * GB), 6, 30.75),
    "v5e": (1, (197 * T, 393 * T, 197 * T, 197 * T), (819 * GB, 50 * GB, 3.125 * GB), 4, 15.75),
    "v5p": (1, (459 * T, 918 * T, 459 * T, 459 * T), (2765 * GB, 100 * GB, 6.25 * GB), 6, 95.73),
    "v6e": (1, (918 * T, 1836 * T, 918 * T, 918 * T), (1638 * GB, 100 * GB, 12.5 * GB), 4, 31.24),
    "tpu7x": (2, (2307 * T, 2307 * T, 4614 * T, 2307 * T), (7380 * GB, 100 * GB, 12.5 * GB), 6, 94.74),
    "a100": (1, (312 * T, 624 * T, 312 * T, 156 * T), (2039 * GB, 300 * GB, 25 * GB), 1, 73.6),
    "h100": (1, (989.4 * T, 1978.9 * T, 1978.9 * T, 494.7 * T), (3350 * GB, 450 * GB, 50 * GB), 1, 72.78),
    "h200": (1, (989.4 * T, 1978.9 * T, 1978.9 * T, 494.7 * T), (4800 * GB, 450 * GB, 50 * GB), 1, 120.81),
    "b200": (1, (2250 * T, 4500 * T, 4500 * T, 1125 * T), (7700 * GB, 900 * GB, 50 * GB), 1, 154.23),
}


@pytest.mark.parametrize("name", BY_NAME)
def test_a_chip_is_what_its_data_sheet_says(name):
    devices, rates, bandwidths, links, gib = SHEETS[name]
    chip = BY_NAME[name]
    assert chip.devices == devices
    found = tuple(devices * chip.peak(kind) for kind in ("bf16", "s8", "f8e4m3fn", "f32"))
    assert found == pytest.approx(rates)
    assert chip.bf16 == pytest.approx(rates[0])
    assert (chip.hbm_bandwidth, chip.link, chip.dcn) == bandwidths
    assert (chip.links, chip.hbm / 2**30) == (links, pytest.approx(gib, abs=0.01))


@pytest.mark.parametrize(
    ("topology", "box", "rate"),
    [
        # Closed along every axis, whole cubes of 4: two directions an axis.
        ("v4:4x4x4", (4, 1, 1), 2 * 50 * GB),
        ("v4:4x4x4", (4, 4, 4), 6 * 50 * GB),
        ("v5p:4x4x8", (1, 1, 8), 2 * 100 * GB),
        ("v5p:4x4x8", (4, 4, 1), 4 * 100 * GB),
        ("v5p:4x4x8", (4, 4, 8), 6 * 100 * GB),
        # Not a whole cube: open lines, one direction an axis.
        ("v4:2x2x4", (1, 1, 4), 50 * GB),
        ("v5p:2x4x4", (2, 4, 4), 3 * 100 * GB),
        # A part of a ring is a line.
        ("v5p:4x4x8", (1, 1, 4), 100 * GB),
        # 2-D tori close at 16 alone.
        ("v5e:8x16", (8, 1), 50 * GB),
        ("v5e:8x16", (1, 16), 2 * 50 * GB),
        ("v6e:16x16", (16, 1), 2 * 100 * GB),
        ("v6e:16x16", (16, 16), 4 * 100 * GB),
        ("v6e:8x8", (8, 8), 2 * 100 * GB),
        # Two devices of a chip share its links.
        ("tpu7x:4x4x4", (4, 4, 4), 6 * 100 * GB / 2),
        ("tpu7x:4x4x4", (4, 1, 1), 2 * 100 * GB / 2),
    ],
)
def test_a_gather_over_every_kind_of_torus(topology, box, rate):
    group = math.prod(box)
    one = collective(group=group)
    want = 1e9 * (group - 1) / group / rate
    assert roofline.seconds(one, places(*box), parse(topology)) == ("ici", pytest.approx(want))


@pytest.mark.parametrize(
    ("kind", "topology", "box", "hops"),
    [
        ("all-to-all", "v5e:16x16", (16, 1), 16 / 4),
        ("ragged-all-to-all", "v5e:16x16", (16, 1), 16 / 4),
        ("all-to-all", "v6e:8x8", (8, 1), 8 / 2),
        ("all-to-all", "v5p:4x4x8", (1, 1, 8), 8 / 4),
        ("all-to-all", "v5p:4x4x8", (4, 1, 1), 4 / 4),
        ("all-to-all", "v5p:4x4x8", (4, 4, 8), 8 / 4),
        ("all-to-all", "v4:2x2x2", (2, 1, 1), 2 / 2),
    ],
)
def test_an_exchange_goes_so_many_hops(kind, topology, box, hops):
    group, machine = math.prod(box), parse(topology)
    gather = roofline.seconds(collective(group=group), places(*box), machine)[1]
    assert roofline.seconds(collective(kind, group=group), places(*box), machine)[1] == pytest.approx(hops * gather)


@pytest.mark.parametrize(
    ("topology", "rate"), [("v5e:16x16", 50 * GB), ("v5p:4x4x4", 100 * GB), ("tpu7x:4x4x4", 50 * GB)]
)
def test_a_permute_sends_all_of_its_buffer_over_one_link(topology, rate):
    machine = parse(topology)
    box = places(*machine.shape)
    assert roofline.seconds(collective("collective-permute"), box, machine) == ("ici", pytest.approx(1e9 / rate))


@pytest.mark.parametrize(("topology", "rate"), [("v4:4x4x4", 6.25), ("v6e:16x16", 12.5), ("tpu7x:4x4x4", 12.5 / 2)])
def test_between_slices_a_device_has_its_share_of_its_chips_network(topology, rate):
    machine = parse(topology, 2)
    origin = [0] * len(machine.shape)
    found = roofline.seconds(collective(group=2), [[0, *origin], [1, *origin]], machine)
    assert found == ("dcn", pytest.approx(0.5e9 / (rate * GB)))


@pytest.mark.parametrize(
    ("name", "nvlink", "card"), [("a100", 300, 25), ("h100", 450, 50), ("h200", 450, 50), ("b200", 900, 50)]
)
def test_every_gpus_links(name, nvlink, card):
    machine = parse(f"{name}:1x8x8")
    inside = roofline.seconds(collective(group=8), [[0]] * 8, machine)
    assert inside == ("ici", pytest.approx(0.875e9 / (nvlink * GB)))
    apart = roofline.seconds(collective(group=8), [[host] for host in range(8)], machine)
    assert apart == ("dcn", pytest.approx(0.875e9 / (card * GB)))


def test_eight_cards_of_a_host_together_may_outrun_its_nvlink():
    """Two hosts have 8 devices each: half of the bytes cross, over 8 cards of 50 GB/s. The host's
    own 450 GB/s takes longer."""
    members = [[i // 8] for i in range(16)]
    found = roofline.seconds(collective(group=16), members, parse("h100:1x2x8"))
    assert found == ("dcn", pytest.approx(1e9 * 15 / 16 / (450 * GB)))


@pytest.mark.parametrize("bound", ["compute", "hbm", "ici", "dcn"])
def test_the_bound_is_what_takes_longest(bound):
    rates = dict.fromkeys(("compute", "hbm", "ici", "dcn"), 1.0) | {bound: 2.0}
    waits = [("ici", True, rates["ici"]), ("dcn", True, rates["dcn"])]
    assert roofline.roofline(rates["compute"], rates["hbm"], 2.0, 2.0, waits).bound == bound
