"""Seconds of collectives on a torus, and how they add up to a step."""

import pytest

from bigmodel_jax.plan import roofline
from bigmodel_jax.plan.hlo import Collective
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
