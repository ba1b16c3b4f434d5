"""One spec tree, and everything that is a map of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.params import Param, normal, ones, zeros

SPEC = {
    "embed": {"table": Param((10, 4), ("vocab", "embed"), normal(0.1))},
    "block": {
        "kernel": Param((4, 6), ("embed", "mlp"), normal(0.5)),
        "bias": Param((6,), ("mlp",), zeros()),
        "scale": Param((6,), ("mlp",), ones(), dtype="bfloat16"),
    },
    "norm": {"mean": Param((4, 4), (None, None), zeros(), trainable=False)},
}


def test_paths_and_back():
    assert set(params.paths(SPEC)) == {"embed/table", "block/kernel", "block/bias", "block/scale", "norm/mean"}
    assert params.from_paths(params.paths(SPEC)) == SPEC


def test_init_has_the_shapes_dtypes_and_values_of_the_spec():
    values = params.init(SPEC, jax.random.key(0))
    assert jax.eval_shape(lambda: params.init(SPEC, jax.random.key(0))) == params.abstract(SPEC)
    assert not values["block"]["bias"].any()
    assert (values["block"]["scale"] == 1).all()
    assert values["block"]["scale"].dtype == jnp.bfloat16


def test_normal_has_its_standard_deviation():
    value = params.init({"a": Param((200, 200), (None, None), normal(0.3))}, jax.random.key(0))["a"]
    assert float(value.std()) == pytest.approx(0.3, rel=0.02)
    assert abs(float(value.mean())) < 0.01


def test_a_parameters_values_depend_on_its_path_and_rng_alone():
    values = params.init(SPEC, jax.random.key(0))
    more = params.init(SPEC | {"a": SPEC["embed"], "z": SPEC["embed"]}, jax.random.key(0))
    np.testing.assert_array_equal(values["embed"]["table"], more["embed"]["table"])
    assert not np.array_equal(more["a"]["table"], more["z"]["table"])
    assert not np.array_equal(values["embed"]["table"], params.init(SPEC, jax.random.key(1))["embed"]["table"])


def test_weight_decay_by_default_on_trainable_matrices():
    decayed = {path for path, p in params.paths(SPEC).items() if p.decay}
    assert decayed == {"embed/table", "block/kernel"}
    assert Param((3,), (None,), zeros(), decay=True).decay


def test_axes_for_each_dimension():
    with pytest.raises(ValueError, match="differ in length"):
        Param((3, 3), ("embed",), zeros())


def test_stacked_layers_draw_apart_with_the_layers_own_distribution():
    layer = {"kernel": Param((64, 64), ("embed", "mlp"), normal(0.2)), "bias": Param((64,), ("mlp",), zeros())}
    spec = params.stack(layer, 3)
    assert spec["kernel"].shape == (3, 64, 64)
    assert spec["kernel"].axes == ("layers", "embed", "mlp")
    assert spec["kernel"].decay
    assert not spec["bias"].decay, "decided before stacking"
    kernels = params.init(spec, jax.random.key(0))["kernel"]
    np.testing.assert_allclose(kernels.std(axis=(1, 2)), 0.2, rtol=0.05)
    assert not np.array_equal(kernels[0], kernels[1])


def test_stacking_twice_nests():
    spec = params.stack(params.stack({"a": Param((4,), (None,), normal(1.0))}, 3), 2, axis="stages")["a"]
    assert spec.shape == (2, 3, 4)
    assert spec.axes == ("stages", "layers", None)
    value = params.init({"a": spec}, jax.random.key(0))["a"].reshape(6, 4)
    assert len(np.unique(value, axis=0)) == 6


def test_partition_and_merge_are_inverse():
    values = params.init(SPEC, jax.random.key(0))
    trainable, frozen = params.partition(values, SPEC)
    assert set(params.paths(frozen)) == {"norm/mean"}
    assert "norm" not in trainable, "empty branches are dropped"
    merged = params.merge(trainable, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(values)
    assert all(a is b for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(values), strict=True))


def test_count():
    assert params.count(SPEC) == 40 + 24 + 6 + 6 + 16
    assert params.count(SPEC, trainable=False) == 16
    assert params.count(SPEC, trainable=True) + params.count(SPEC, trainable=False) == params.count(SPEC)


def test_abstract_carries_shardings():
    mesh = sharding.make_mesh(sharding.ParallelConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    placed = sharding.shardings(SPEC, mesh, sharding.Rules())
    abstract = params.abstract(SPEC, placed)
    assert abstract["block"]["kernel"].sharding == placed["block"]["kernel"]
    assert abstract["block"]["kernel"].sharding.shard_shape((4, 6)) == (2, 3)


def test_table_has_a_line_for_each_parameter_with_its_facts():
    lines = {line.split()[0]: line for line in params.table(SPEC).splitlines()}
    assert set(lines) == set(params.paths(SPEC))
    assert lines["block/kernel"].split()[1:] == ["4x6", "embed,mlp", "normal(0.5)", "float32", "decay"]
    assert lines["norm/mean"].endswith("statistic")
