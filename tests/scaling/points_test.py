import dataclasses

import pytest

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.plan import topology as topologies
from bigmodel_jax.scaling.points import make_points, parse_layout, planned_points

CONFIG = Config(LlamaConfig.tiny(), NextToken(), DataConfig(), train=TrainConfig(batch_size=8))


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("data", {"data": -1}),
        ("fsdp", {"data": 1, "fsdp": -1}),
        ("tensor=2,fsdp", {"data": 1, "fsdp": -1, "tensor": 2}),
        ("tensor=2", {"data": -1, "tensor": 2}),
        ("data=2, fsdp=4", {"data": 2, "fsdp": 4}),
    ],
)
def test_layouts_by_name(text, sizes):
    assert parse_layout(text, ParallelConfig(data=3, seq=5)) == dataclasses.replace(ParallelConfig(), **sizes)


def test_weak_grows_the_batch_and_strong_keeps_it():
    weak = make_points(CONFIG, (4, 2), ("data", "fsdp"), "weak")
    assert [(p.layout, p.devices, p.config.train.batch_size) for p in weak] == [
        ("data", 2, 8),
        ("data", 4, 16),
        ("fsdp", 2, 8),
        ("fsdp", 4, 16),
    ]
    assert {p.config.train.batch_size for p in make_points(CONFIG, (2, 4), ("data",), "strong")} == {8}


def test_planned_points_are_machines_and_not_their_number_of_chips():
    """256 chips of one slice and of four are two points. The layout depends on the number of
    slices."""
    machines = [topologies.parse_slices(name) for name in ("v5e:8x8", "v5e:16x16", "4xv5e:8x8")]
    points = planned_points(CONFIG, tuple(machines), ("fsdp",), "weak")
    assert [(p.topology, p.config.train.batch_size, p.config.parallel.slices) for p in points] == [
        ("v5e:8x8", 8, 1),
        ("v5e:16x16", 32, 1),
        ("4 x v5e:8x8", 32, 4),
    ]


@pytest.mark.parametrize(
    ("devices", "layouts", "processes", "says"),
    [
        ((2,), ("fdsp",), 1, "axis 'fdsp' is unknown (perhaps you meant 'fsdp')"),
        ((2,), ("tensor=two",), 1, "tensor = 'two'; it must be a whole number"),
        ((0, 1), ("data",), 1, "--devices 0 1"),
        ((3,), ("data",), 2, "--processes 2 does not divide --devices 3"),
        ((3,), ("tensor=2",), 1, "must fill all 3 devices"),
    ],
)
def test_mistakes_are_named(devices, layouts, processes, says):
    with pytest.raises(ValueError) as error:
        make_points(CONFIG, devices, layouts, "weak", processes)
    assert says in str(error.value)
