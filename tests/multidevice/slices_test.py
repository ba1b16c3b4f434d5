"""Several slices: which axis crosses them, and gradients that travel between them in bfloat16."""

import dataclasses

import numpy as np
import pytest
from grids import few
from jax.experimental import topologies

import layout_runs
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import AXES, ParallelConfig
from bigmodel_jax.models import Compute
from bigmodel_jax.plan.program import hlo
from bigmodel_jax.training.slices import split_mesh


def blocks(parallel: ParallelConfig) -> dict[str, set[int]]:
    """{axis: numbers of slices met when walking along it} of eight virtual devices in two
    slices."""
    ids = np.vectorize(lambda d: d.id // 4)(sharding.make_mesh(parallel).devices)
    return {a: set(np.unique(np.diff(ids, axis=i))) for i, a in enumerate(AXES) if ids.shape[i] > 1}


@pytest.mark.parametrize(
    ("sizes", "across"),
    [
        ({"data": 2, "fsdp": 4}, "data"),
        ({"data": 4, "tensor": 2}, "data"),
        ({"data": 1, "stage": 2, "fsdp": 4}, "stage"),
        ({"data": 1, "fsdp": 8}, "fsdp"),
        ({"data": 2, "stage": 2, "tensor": 2}, "data"),
    ],
)
def test_one_axis_crosses_the_slices_and_no_other(sizes, across):
    parallel = ParallelConfig(**sizes, slices=2)
    steps = blocks(parallel)
    assert 1 in steps.pop(across)
    assert all(met == {0} for met in steps.values()), steps


def test_devices_that_know_their_slice_are_asked():
    """The slices are not contiguous in the list: even devices are in one slice, odd ones in the
    other."""

    @dataclasses.dataclass(frozen=True)
    class Device:
        id: int
        slice_index: int
        platform: str = "cpu"
        process_index: int = 0

    found = sharding._slices(2, [Device(i, i % 2) for i in range(8)])
    assert [[d.id for d in part] for part in found] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    with pytest.raises(ValueError, match=r"parallel.slices = 1, but the devices present are in 2 slices"):
        sharding._slices(1, [Device(i, i % 2) for i in range(8)])
    with pytest.raises(ValueError, match=r"parallel.slices = 4, but the devices present are in 2 slices"):
        sharding._slices(4, [Device(i, i % 2) for i in range(8)])


def test_the_split_mesh_is_the_same_devices_in_the_same_order():
    mesh = sharding.make_mesh(ParallelConfig(data=4, fsdp=2, slices=2))
    inner = split_mesh(mesh, 2)
    assert list(inner.devices.flat) == list(mesh.devices.flat)
    assert dict(inner.shape) == {"stage": 1, "slice": 2, "data": 2, "fsdp": 2, "expert": 1, "seq": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slices": 0}, "parallel.slices = 0; it must be 1 or more"),
        ({"slices": 3}, "parallel.slices = 3 must divide one of data=8 x stage=1 x fsdp=1"),
        ({"data": 1, "fsdp": 8, "slices": 2, "slice_gradients": "bfloat16"}, "needs parallel.data divisible"),
        ({"slices": 2, "strategy": "pmap"}, "slices need 'jit'"),
    ],
)
def test_slices_that_do_not_fit_are_said(change, message):
    with pytest.raises(ValueError, match=message):
        validate(layout_runs.config_of("llama", ParallelConfig(**{"data": 8, **change})), 8)


BF16 = ParallelConfig(data=4, fsdp=2, slices=2, slice_gradients="bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("case", few(("llama", "mixtral", "bert", "vit"), "llama"))
def test_bfloat16_between_slices_follows_float32(case):
    """Each slice's gradient is rounded once to 8 bits, so losses agree to that error after a few
    Adam steps."""
    got = layout_runs.run(layout_runs.config_of(case, BF16), case, 8)
    base = layout_runs.one_device(layout_runs.config_of(case, ParallelConfig(data=1)), case)
    np.testing.assert_allclose(got.losses, base.losses, rtol=5e-3)
    np.testing.assert_allclose(got.norms, base.norms, rtol=5e-3)
    assert not np.array_equal(got.norms, base.norms)


@pytest.mark.exhaustive
def test_across_slices_bfloat16_inside_one_float32(monkeypatch):
    """The program is the one that a TPU's compiler makes for two slices of four chips. A CPU's
    compiler turns bfloat16 sums into float32."""
    pytest.importorskip("libtpu")
    tpu = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    for name, value in (tpu | {"TPU_ACCELERATOR_TYPE": "v5litepod-16"}).items():
        monkeypatch.setenv(name, value)
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2)
    program = layout_runs.lowered(
        layout_runs.config_of("llama", BF16, compute=Compute(attention="plain")), "llama", topology.devices
    )
    text = program.compile(compiler_options={"optimization_level": "O0"}).as_text()
    found = hlo.collectives(text, sharding.make_mesh(BF16, topology.devices))
    across = [c for c in found if c.across and c.bytes > 512]  # loss, counts and norms are smaller
    assert {c.kind for c in across} == {"all-reduce"}
    assert {shape.partition("[")[0] for c in across for shape in c.shapes} == {"bf16"}
    assert {shape.partition("[")[0] for c in found if not c.across for shape in c.shapes} <= {"f32", "s32"}
    # Each device sends its own shard of every gradient, and nothing twice: within the padding of a
    # tile.
    model = layout_runs.CASES["llama"][0].make()
    assert sum(c.bytes * c.count for c in across) <= 1.25 * 2 * params.count(model.spec) / 2
