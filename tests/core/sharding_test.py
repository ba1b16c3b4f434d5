"""Logical names to mesh axes: the rules, the sizes that fit, and the errors where they do not."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.params import Param, zeros
from bigmodel_jax.core.sharding import AXES, ParallelConfig, Rules, constrain, factor, make_mesh, partition_spec


def param(shape, *axes):
    return Param(shape, axes, zeros())


# ---- the mesh ----
@pytest.mark.parametrize(
    ("parallel", "devices", "sizes"),
    [
        (ParallelConfig(), 8, (1, 8, 1, 1, 1, 1)),
        (ParallelConfig(), 1, (1, 1, 1, 1, 1, 1)),
        (ParallelConfig(data=2, fsdp=-1, tensor=2), 8, (1, 2, 2, 1, 1, 2)),
        (ParallelConfig(data=1, stage=2, expert=2, seq=2), 8, (2, 1, 1, 2, 2, 1)),
        (ParallelConfig(data=-1, tensor=4096), 4096, (1, 1, 1, 1, 1, 4096)),
    ],
)
def test_factor(parallel, devices, sizes):
    assert factor(parallel, devices) == sizes


@pytest.mark.parametrize(
    ("parallel", "devices", "message"),
    [
        (ParallelConfig(data=16), 8, "data=16 needs 16 devices, but only 8"),
        (ParallelConfig(data=2), 8, "takes 2 of the devices, but it must fill all 8 devices"),
        (ParallelConfig(data=-1, tensor=3), 8, "tensor=3 takes 3 of the devices, but it must fill all 8"),
        (ParallelConfig(data=-1, fsdp=-1), 8, "at most one may be -1"),
        (ParallelConfig(tensor=0), 8, "tensor=0: sizes are positive"),
        (ParallelConfig(tensor=-2), 8, "sizes are positive"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(parallel, devices, message):
    with pytest.raises(ValueError, match=message) as error:
        factor(parallel, devices)
    assert "\n" not in str(error.value)


def test_a_mesh_always_has_all_axes():
    mesh = make_mesh(ParallelConfig(data=2, tensor=4))
    assert mesh.axis_names == AXES
    assert dict(mesh.shape) == {"stage": 1, "data": 2, "fsdp": 1, "expert": 1, "seq": 1, "tensor": 4}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert make_mesh(ParallelConfig(), jax.devices()[:3]).size == 3


# ---- names to axes ----
def test_partition_spec_follows_the_rules():
    assert partition_spec(("layers", "embed", "mlp", None), Rules()) == P("stage", "fsdp", "tensor", None)
    assert partition_spec(("batch", "seq"), Rules()) == P(("stage", "data", "fsdp", "expert"), "seq")
    assert partition_spec(("embed",), Rules(embed=("fsdp", "tensor"))) == P(("fsdp", "tensor"))


def test_two_names_of_a_dimension_lie_on_the_axes_of_both_as_far_as_they_divide_it():
    assert partition_spec((None, "mlp+embed"), Rules()) == P(None, ("tensor", "fsdp"))
    assert partition_spec(("mlp+embed",), Rules(embed="tensor")) == P("tensor")
    with pytest.raises(ValueError, match="'embd' has no rule"):
        partition_spec(("mlp+embd",), Rules())
    mesh = make_mesh(ParallelConfig(data=1, fsdp=4, tensor=2))
    for size, where in ((16, ("tensor", "fsdp")), (6, "tensor")):
        spec = {"w": Param((size,), ("mlp+embed",), zeros())}
        assert sharding.shardings(spec, mesh, Rules())["w"].spec == P(where)
    with pytest.raises(ValueError, match="2 does not divide dimension 'mlp' of w, which is 5 long"):
        sharding.shardings({"w": Param((5,), ("mlp+embed",), zeros())}, mesh, Rules())


def test_every_rule_names_axes_of_the_mesh():
    for name, axes in vars(Rules()).items():
        assert set(sharding.axis_names(axes)) <= set(AXES), name


def test_an_axis_claimed_twice_is_an_error_for_parameters_and_settled_for_activations():
    with pytest.raises(ValueError, match=r"'heads' and 'mlp' of .* both lie on mesh axis 'tensor'"):
        partition_spec(("heads", "mlp"), Rules())
    assert partition_spec(("batch", "embed"), Rules(), strict=False) == P(("stage", "data", "fsdp", "expert"), None)
    assert partition_spec(("embed", "batch"), Rules(), strict=False) == P("fsdp", ("stage", "data", "expert"))


def test_an_unknown_name_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="'embd' has no rule; known: batch, seq, residual_seq, layers"):
        partition_spec(("embd",), Rules())


def test_shardings_of_a_spec():
    mesh = make_mesh(ParallelConfig(data=1, fsdp=4, tensor=2))
    spec = {"a": param((8, 6), "embed", "mlp"), "odd": param((6, 6), "embed", "mlp"), "b": param((3,), None)}
    placed = sharding.shardings(spec, mesh, Rules())
    assert placed["a"].spec == P("fsdp", "tensor")
    assert placed["odd"].spec == P(None, "tensor"), "fsdp is only storage: what it does not divide stays whole"
    assert placed["b"].is_fully_replicated
    value = jax.jit(lambda: params.init(spec, jax.random.key(0)), out_shardings=placed)()
    assert value["a"].addressable_shards[0].data.shape == (2, 3)


def test_a_dimension_that_tensor_does_not_divide_is_named():
    mesh = make_mesh(ParallelConfig(data=1, fsdp=2, tensor=4))
    with pytest.raises(
        ValueError, match=r"parallel\.tensor: 4 does not divide dimension 'mlp' of block/up, which is 6"
    ):
        sharding.shardings({"block": {"up": param((8, 6), "embed", "mlp")}}, mesh, Rules())


def test_batch_sharding_and_its_number_of_pieces():
    mesh = make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2))
    assert sharding.batch_shards(mesh, Rules()) == 4
    for axes, shape in {(): (8,), ("seq",): (8, 6), (None, "seq"): (8, 2, 6)}.items():
        assert sharding.batch_sharding(mesh, Rules(), axes).shard_shape(shape) == (2, *shape[1:])
    ring = make_mesh(ParallelConfig(data=4, seq=2))
    assert sharding.batch_sharding(ring, Rules(), ("seq",)).shard_shape((8, 6)) == (2, 3)


# ---- constrain ----
def layout_of(mesh, x, *logical):
    def fn(x):
        with sharding.use(mesh, Rules()):
            return constrain(x * 2, *logical)

    return jax.jit(fn)(x).sharding


def test_constrain_places_an_activation():
    mesh = make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2))
    got = layout_of(mesh, jnp.ones((8, 4, 6)), "batch", None, "mlp")
    assert got.shard_shape((8, 4, 6)) == (2, 4, 3)


def test_constrain_leaves_whole_what_does_not_divide():
    mesh = make_mesh(ParallelConfig(data=2, fsdp=2, tensor=2))
    with sharding.use(mesh, Rules()):
        got = constrain(jnp.ones((3, 6)), "batch", "mlp")
    assert got.sharding.shard_shape((3, 6)) == (3, 3)


def test_constrain_does_nothing_outside_or_on_one_device():
    x = jnp.ones((8,))
    assert constrain(x, "batch") is x
    with sharding.use(make_mesh(ParallelConfig(), jax.devices()[:1]), Rules()):
        assert constrain(x, "batch") is x


def test_use_nests_and_ends_also_after_an_error():
    x = jnp.ones((8,))
    outer, inner = make_mesh(ParallelConfig(data=8)), make_mesh(ParallelConfig(data=2, tensor=4))
    with sharding.use(outer, Rules()):
        with sharding.use(inner, Rules()):
            assert constrain(x, "batch").sharding.shard_shape((8,)) == (4,)
        with pytest.raises(ValueError, match="no rule"), sharding.use(inner, Rules()):
            constrain(x, "rows")
        assert constrain(x, "batch").sharding.shard_shape((8,)) == (1,)
    assert constrain(x, "batch") is x
