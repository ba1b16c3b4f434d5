"""What there is of memory, and what a tree of shapes takes of it."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import device_memory, sharding
from bigmodel_jax.core.device_memory import Room
from bigmodel_jax.core.sharding import ParallelConfig

GIB = 2**30
MEMINFO = "MemTotal:       8388608 kB\nMemFree:        1000 kB\nSwapTotal:      1048576 kB\n"  # 8 GiB and 1 GiB


def host(folder, **contents: str):
    """A root with `proc` and `sys`: {path with __ for /: content}."""
    for name, text in ({"proc__meminfo": MEMINFO} | contents).items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return device_memory.host_memory(folder)


def test_a_host_has_its_memory_and_swap(tmp_path):
    assert host(tmp_path) == 9 * GIB


def test_a_control_group_or_one_above_it_limits_the_memory(tmp_path):
    group = {"proc__self__cgroup": "0::/jobs/one\n", "sys__fs__cgroup__jobs__one__memory.max": "max\n"}
    assert host(tmp_path, **group) == 9 * GIB
    assert host(tmp_path, **group, sys__fs__cgroup__jobs__memory=str(GIB)) == 9 * GIB
    (tmp_path / "sys/fs/cgroup/jobs/memory.max").write_text(f"{2 * GIB}\n")
    assert host(tmp_path) == 3 * GIB


def test_a_control_group_of_version_1(tmp_path):
    lines = "5:cpu:/a\n4:memory:/docker/a\n1:name=systemd:/\n"
    (tmp_path / "sys/fs/cgroup/memory/docker/a").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes").write_text(str(4 * GIB))
    assert host(tmp_path, proc__self__cgroup=lines) == 5 * GIB


def test_this_host_has_memory():
    assert device_memory.host_memory() > 2**28


def shapes(mesh, spec: P, shape=(64, 64)):
    return {"x": jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))}


@pytest.fixture
def mesh():
    return sharding.make_mesh(ParallelConfig(data=1), jax.devices()[:1])


def test_what_fits_to_the_byte_is_not_refused(mesh, monkeypatch):
    monkeypatch.setattr(device_memory, "host_memory", lambda: 64 * 64 * 2)
    device_memory.check("x", shapes(mesh, P()), mesh, "y")
    monkeypatch.setattr(device_memory, "host_memory", lambda: 64 * 64 * 2 - 1)
    with pytest.raises(ValueError, match=r"x: 8.00 KiB of memory needed, and this host has 8.00 KiB; what helps: y"):
        device_memory.check("x", shapes(mesh, P()), mesh, "y")


def test_a_host_that_does_not_say_refuses_nothing(mesh, monkeypatch):
    monkeypatch.setattr(device_memory, "host_memory", lambda: None)
    device_memory.check("x", shapes(mesh, P(), (10**9, 10**9)), mesh, "y")


@pytest.mark.skipif(jax.device_count() < 8, reason="8 devices")
def test_devices_of_one_host_share_its_memory(monkeypatch):
    mesh = sharding.make_mesh(ParallelConfig(fsdp=8), jax.devices()[:8])
    whole = 64 * 64 * 2
    monkeypatch.setattr(device_memory, "host_memory", lambda: whole)
    device_memory.check("x", shapes(mesh, P("fsdp")), mesh, "y")
    device_memory.check("x", shapes(mesh, P()), mesh, "y", copies=False)
    with pytest.raises(ValueError, match="64.00 KiB"):
        device_memory.check("x", shapes(mesh, P()), mesh, "y")


def test_a_device_with_memory_of_its_own_is_asked(monkeypatch, mesh):
    device = types.SimpleNamespace(
        platform="gpu", device_kind="NVIDIA H100", memory_stats=lambda: {"bytes_limit": 4 * GIB}
    )
    found = device_memory.room(types.SimpleNamespace(local_devices=[device]))
    assert found == Room(4 * GIB, "each NVIDIA H100")
    device.memory_stats = lambda: None
    assert device_memory.room(types.SimpleNamespace(local_devices=[device])).size is None
