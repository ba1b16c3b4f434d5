"""The reader of collectives, on programs compiled here and on recorded lines of TPU and GPU
programs."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.plan.program import cost, hlo
from bigmodel_jax.plan.program.instructions import Code

CUBE = ParallelConfig(data=2, fsdp=2, tensor=2)


def read(fn, in_spec, out_spec, shape, parallel=CUBE) -> list[hlo.Collective]:
    """Collectives of `fn`, compiled for eight devices as it stands, device by device."""
    mesh = sharding.make_mesh(parallel)
    program = jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=in_spec, out_specs=out_spec, check_vma=False))
    return hlo.collectives(program.lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile().as_text(), mesh)


# A device's own block is (8, 64) float32 where dimension 0 of 16 is cut in two.
CASES = {
    "all-reduce": (lambda x: jax.lax.psum(x, "tensor"), P("tensor"), P(), ("tensor",), 2048, 2),
    "all-gather": (lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), P("fsdp"), P(), ("fsdp",), 4096, 2),
    "reduce-scatter": (lambda x: jax.lax.psum_scatter(x, "data", tiled=True), P(), P("data"), ("data",), 4096, 2),
    "all-to-all": (
        lambda x: jax.lax.all_to_all(x, "fsdp", 1, 0, tiled=True),
        P("fsdp"),
        P(None, "fsdp"),
        ("fsdp",),
        2048,
        2,
    ),
    "collective-permute": (
        lambda x: jax.lax.ppermute(x, "tensor", [(0, 1), (1, 0)]),
        P("tensor"),
        P("tensor"),
        ("tensor",),
        2048,
        2,
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_each_kind_with_its_bytes_and_axis(kind):
    fn, in_spec, out_spec, axes, size, group = CASES[kind]
    (found,) = read(fn, in_spec, out_spec, (16, 64))
    assert (found.kind, found.axes, found.bytes, found.group, found.count) == (kind, axes, size, group, 1)
    assert "hlo_test.py:" in found.source


def test_a_group_over_two_axes():
    (found,) = read(lambda x: jax.lax.psum(x, ("data", "tensor")), P(("data", "tensor")), P(), (16, 64))
    assert (found.axes, found.group, found.bytes) == (("data", "tensor"), 4, 4 * 64 * 4)
    assert found.sent == 2 * 3 / 4 * 1024


def test_loops_are_multiplied_out():
    def fn(x):
        def inner(x, _):
            return jax.lax.psum(jnp.sin(x), "tensor") / 2, None

        def outer(x, _):
            return jax.lax.scan(inner, x, None, length=3)[0] + jax.lax.pmax(x, "data"), None

        return jax.lax.scan(outer, x, None, length=5)[0]

    counts = {c.axes: c.count for c in read(fn, P(), P(), (8, 64))}
    assert counts == {("tensor",): 15, ("data",): 5}


def test_by_axes_adds_what_is_sent():
    found = read(lambda x: jax.lax.all_gather(jax.lax.psum(x, "tensor"), "fsdp", tiled=True), P("fsdp"), P(), (16, 64))
    assert hlo.by_axes(found) == {("tensor",): 2048.0, ("fsdp",): 2048.0}


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=[4,2]<=[8]", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['data'=2,'fsdp'=2,'tensor'=2] {'fsdp'}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("source_target_pairs={{0,4},{4,0}}", [[0, 4], [4, 0]]),
    ],
)
def test_every_notation_of_groups(text, groups):
    line = f"%x = f32[4] all-reduce(%y), channel_id=1, {text}"
    assert hlo.device_groups(line, list(range(8))) == groups


@pytest.mark.parametrize(
    ("shape", "size"),
    [("f32[16,64]", 4096), ("bf16[3]", 6), ("pred[]", 1), ("s4[6]", 3), ("f8e4m3fn[10]", 10), ("s32[]", 4)],
)
def test_bytes_of_a_shape(shape, size):
    assert hlo.num_bytes(shape) == size


def test_a_start_prints_operands_and_results():
    """In a GPU's text, an all-gather's start is ((operands), (results)), and an all-reduce's the
    results alone or both."""
    read = hlo._results
    assert read("(f32[8,64]{1,0}, f32[16,64]{1,0})", "all-gather", True) == ("f32[16,64]",)
    assert read("((f32[8]{0}, f32[4]{0}), (f32[16]{0}, f32[8]{0}))", "all-gather", True) == ("f32[16]", "f32[8]")
    assert read("f32[8]{0}", "all-reduce", True) == ("f32[8]",)
    assert read("((f32[16]{0}), f32[8]{0})", "reduce-scatter", True) == ("f32[8]",)
    assert read("(f32[4,2]{1,0:T(8,128)S(1)}, f32[4,2]{1,0}, u32[]{:S(2)}, u32[])", "collective-permute", True) == (
        "f32[4,2]",
    )


# ---------------------------------------------------------------------------- recorded TPU programs

# A step of two products in six layers, parameters over fsdp = 8 chips of v5e:2x4, as libtpu 0.0.52
# compiled it; what is neither a collective nor a loop nor a call is left out.
TEXTS = Path(__file__).parent / "texts"
WEIGHT = 2048 * 4096 * 2


def test_a_tpu_gathers_twice_and_reduce_scatters_once():
    """The text has each overlapped gather four times. Its reduce-scatters are fusions, and loop
    lengths stand in conditions."""
    mesh = sharding.make_mesh(ParallelConfig(data=1, fsdp=8))
    found = hlo.collectives((TEXTS / "tpu_v5e.txt").read_text(), mesh)
    assert {c.channel: c.kind for c in found} == dict.fromkeys((13, 14, 15, 16), "all-gather") | dict.fromkeys(
        (10, 12), "reduce-scatter"
    )
    assert len(found) == 6
    for c in found:
        assert (c.bytes, c.count, c.axes, c.group, c.across) == (WEIGHT, 6, ("fsdp",), 8, False)
        assert "while/body" in c.source
        assert "step.py:1" in c.source


class Chip:
    def __init__(self, i):
        self.slice_index = i // 8


class TwoSlices:
    devices = np.array([Chip(i) for i in range(16)], object).reshape(1, 2, 8, 1, 1, 1)
    axis_names, size = sharding.AXES, 16


def test_a_gather_between_slices_makes_all_their_shards():
    """A gather prints the part that a device sends, and an all-reduce prints the whole."""
    text = (TEXTS / "tpu_two_slices.txt").read_text().replace("ALL_REDUCE", "ALL_GATHER")
    across = [c for c in hlo.collectives(text, TwoSlices()) if c.across]
    assert [(c.kind, c.bytes, c.sent) for c in across] == [("all-gather", 2 * WEIGHT // 8, 6 * WEIGHT // 8)] * 2


def test_a_group_inside_a_slice_is_the_slices_own():
    """The axis goes across slices as well. The time of a gather inside one slice is that of the
    slice's links."""
    found = hlo.collectives((TEXTS / "tpu_two_slices.txt").read_text(), TwoSlices())
    assert {c.members for c in found if not c.across} == {tuple(range(8))}
    assert {c.members for c in found if c.across} == {(0, 8)}


def test_two_slices_send_their_shards():
    """The program is that of one slice. A send takes the part that a device holds to the other
    slice."""
    found = hlo.collectives((TEXTS / "tpu_two_slices.txt").read_text(), TwoSlices())
    across = [c for c in found if c.across]
    assert [(c.kind, c.axes, c.bytes, c.count, c.group) for c in across] == [
        ("all-reduce", ("data",), WEIGHT // 8, 6, 2)
    ] * 2
    assert hlo.by_axes(found, lambda c: c.bytes * c.count) == {
        ("fsdp",): 6 * 6 * WEIGHT,
        ("data",): 6 * 2 * WEIGHT // 8,
    }


def test_a_kernel_configuration_over_several_lines_ends_no_computation():
    text = """ENTRY %main (x: f32[8]) -> f32[8] {
  %k = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"custom_call_config": {"body": "
}}"}
  %r = f32[8]{0} all-reduce(%k), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}
"""
    (found,) = hlo.collectives("HloModule m, num_partitions=8\n" + text, sharding.make_mesh(ParallelConfig(data=8)))
    assert (found.kind, found.bytes, found.axes) == ("all-reduce", 32, ("data",))


def test_a_loop_whose_length_depends_on_data_counts_once_and_is_named():
    """A loop of known length inside it runs an unknown number of times."""

    def step(x):
        inner = jax.lax.fori_loop(0, 3, lambda _, y: y @ y, x)
        return jax.lax.while_loop(
            lambda y: jnp.sum(y) < 9, lambda y: jax.lax.fori_loop(0, 5, lambda _, z: z @ z, y), inner
        )

    text = jax.jit(step).lower(jnp.ones((8, 8))).compile().as_text()
    code = Code(text)
    bodies = [name for name, body in code.bodies.items() if any(one.opcode == "dot" for one in body.values())]
    found = sorted((code.program.times(name), code.program.is_counted(name)) for name in bodies)
    assert found == [(3, True), (5, False)]
    assert cost.measure(code, lambda kind: 1.0, 1.0).open_ended == 1
