"""Machines by name, and what is said of names that are none."""

import importlib.util
import math

import pytest

from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.plan import topology as topologies


@pytest.mark.parametrize(
    ("name", "slices", "chips", "devices"),
    [
        ("v5e:16x16", 1, 256, 256),
        ("v5p:4x4x8", 1, 128, 128),
        ("tpu7x:4x4x4", 1, 64, 128),
        ("v5e:16x16", 4, 1024, 1024),
        ("h100:1x8x8", 1, 64, 64),
    ],
)
def test_a_topology_counts_its_chips_and_devices(name, slices, chips, devices):
    found = topologies.parse(name, slices)
    assert (found.chips, found.devices, found.name) == (chips, devices, name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5x:4x4", "perhaps you meant 'v5"),
        ("ironwood:4x4x4", "perhaps you meant 'tpu7x'"),
        ("v5e:16", "takes 2 numbers"),
        ("v5e:4x4x4", "takes 2 numbers"),
        ("v5p:0x4x4", "takes 3 numbers"),
        ("", "is unknown"),
        ("v5e:16x32", "256 at most"),
        ("h100:8", "SLICESxHOSTSxGPUS"),
    ],
)
def test_a_name_that_is_none_is_one_line_with_what_is_meant(name, says):
    with pytest.raises(ValueError, match=says) as error:
        topologies.parse(name)
    assert "\n" not in str(error.value)


def test_slices_may_stand_in_front():
    assert topologies.parse_slices("4xv5e:16x16") == topologies.parse("v5e:16x16", 4)
    assert topologies.parse_slices("v5e:16x16") == topologies.parse("v5e:16x16")


def test_gpus_have_their_slices_in_their_name():
    with pytest.raises(ValueError, match="states the slices: h100:2x8x8"):
        topologies.parse("h100:1x8x8", 2)


def test_every_chip_has_its_figures_and_where_they_are_from():
    for chip in topologies.CHIPS:
        assert chip.source, chip.name
        assert all(x > 0 for x in (chip.hbm, chip.bf16, chip.hbm_bandwidth, chip.link, chip.links, chip.dcn)), chip.name
        # The data sheets order them so: arithmetic outruns memory, and memory the links between
        # chips.
        assert chip.bf16 / 2 > chip.hbm_bandwidth > chip.link * chip.links > chip.dcn, chip.name


def test_narrow_types_are_faster_only_where_there_is_a_unit():
    v5e, v4 = topologies.BY_NAME["v5e"], topologies.BY_NAME["v4"]
    assert v5e.peak("s8") == 393e12
    assert v5e.peak("f8e4m3fn") == v5e.peak("bf16") == 197e12
    assert v4.peak("s8") == v4.peak("bf16")
    assert topologies.BY_NAME["tpu7x"].peak("bf16") == 2307e12 / 2, "of one of the chip's two devices"
    assert topologies.BY_NAME["h100"].peak("f32") == 989.4e12 / 2


@pytest.mark.parametrize("given", [{"fsdp": 100}, {"data": 3, "fsdp": 5, "tensor": 7}, {"data": 1, "fsdp": 512}])
def test_a_mesh_that_does_not_make_up_the_devices_is_answered_with_meshes_that_do(given):
    topology = topologies.parse("v5e:16x16")
    with pytest.raises(ValueError, match="these fit: --parallel") as error:
        topologies.check_mesh(ParallelConfig(**given), topology)
    assert "\n" not in str(error.value)
    for mesh in topologies.nearest_meshes(ParallelConfig(**given), 256):
        assert math.prod(mesh.values()) == 256


def test_a_missing_compiler_is_answered_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="uv sync --extra plan$"):
        topologies.check_installed(topologies.parse("v5e:2x2"))
    with pytest.raises(ValueError, match="uv sync --extra plan-gpu$"):
        topologies.check_installed(topologies.parse("h100:1x1x8"))
