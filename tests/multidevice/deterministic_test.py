"""The same bits on any number of devices: batches, and with `parallel.deterministic` the parameters
after 20 steps."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import layout_runs
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data.loader import BatchIterator, Sampler
from bigmodel_jax.training import deterministic

STEPS = 20
FIXED = ParallelConfig(data=1, deterministic=True)
MESHES = {
    "one": (1, {}),
    "data 2": (2, {"data": 2}),
    "data 4": (4, {"data": 4}),
    "data 8": (8, {"data": 8}),
    "fsdp 8": (8, {"fsdp": 8}),
    "data 2, fsdp 4": (8, {"data": 2, "fsdp": 4}),
}
FEW = ("data 2", "data 2, fsdp 4")


def digest(tree) -> str:
    """One hash of every bit of a tree, and of its paths."""
    out = hashlib.sha256()
    for path, leaf in sorted(params.paths(tree).items()):
        out.update(path.encode() + np.asarray(leaf).tobytes())
    return out.hexdigest()[:16]


def trained(case: str, mesh: str) -> tuple[str, str]:
    """Hashes of parameters and losses after 20 steps."""
    num, sizes = MESHES[mesh]
    config = layout_runs.config_of(case, dataclasses.replace(FIXED, **sizes))
    done = layout_runs.run(config, case, num, STEPS)
    return digest(done.state.params), digest({"losses": done.losses, "norms": done.norms})


OTHERS = [
    pytest.param(case, meshes, marks=pytest.mark.exhaustive)
    for case, meshes in (("llama", tuple(MESHES)), ("mixtral", FEW), ("vit", FEW), ("bert", FEW))
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "meshes"), [("llama", FEW), *OTHERS])
def test_parameters_are_bit_identical_on_any_number_of_devices(case, meshes, record_property):
    found = {mesh: trained(case, mesh) for mesh in meshes}
    record_property("digests", (case, found))
    print(case, found)
    assert len(set(found.values())) == 1, found


@pytest.mark.exhaustive
def test_without_it_they_are_not():
    """The test above can fail: the compiler's own sums differ in the last bits."""
    config = layout_runs.config_of("llama", ParallelConfig(data=2))
    eight = dataclasses.replace(config, parallel=ParallelConfig(data=8))
    two, more = (layout_runs.run(c, "llama", n, STEPS) for c, n in ((config, 2), (eight, 8)))
    assert digest(two.state.params) != digest(more.state.params)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", ["llama", "vit"])
def test_it_trains_like_any_other_layout(case, prove):
    prove("deterministic", case, dataclasses.replace(FIXED, data=2, fsdp=4))


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 4, "fsdp": 2}, {"data": 2}])
def test_the_tree_between_devices_continues_the_tree_inside_one(axes):
    """Sixteen vectors of very different sizes are added by hand in pairs, and by devices that hold
    2, 2 and 8 of them."""
    parallel = ParallelConfig(**{"data": 1, **axes})
    num = np.prod(list(axes.values()))
    mesh = sharding.make_mesh(parallel, jax.devices()[:num])
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((16, 8, 3)) * 10.0 ** rng.integers(-6, 6, (16, 1, 1))).astype(np.float32)
    want = values
    while len(want) > 1:
        want = want[::2] + want[1::2]

    def local(x):
        mine = deterministic.tree_sum(lambda i: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), len(x))
        add = dict(mesh=mesh, axes=("data", "fsdp"))
        return deterministic.reduce(mine, P("fsdp"), **add), deterministic.reduce(mine, P(), **add)

    run = jax.shard_map(local, mesh=mesh, in_specs=P(("data", "fsdp")), out_specs=(P("fsdp"), P()), check_vma=False)
    for got in jax.jit(run)(values):
        np.testing.assert_array_equal(got, want[0])
    assert not np.array_equal(values.sum(0), want[0]), "another order gives other bits"


class Counting:
    """Rows that say which example they are."""

    def __len__(self) -> int:
        return 1000

    def batch(self, indices, noise) -> dict[str, np.ndarray]:
        return {"tokens": np.stack([indices, indices % 7], axis=1).astype(np.int32)}


def test_batch_n_is_the_same_on_any_number_of_devices():
    def hashes(num: int, parallel: ParallelConfig) -> list[str]:
        mesh = sharding.make_mesh(parallel, jax.devices()[:num])
        batches = BatchIterator(Sampler(Counting(), 16, seed=3), mesh, parallel.rules)
        return [digest(next(batches)) for _ in range(3)]

    found = {tuple(hashes(n, ParallelConfig(data=n))) for n in (1, 2, 4, 8)}
    found |= {tuple(hashes(8, ParallelConfig(data=2, fsdp=4))), tuple(hashes(8, ParallelConfig(data=4, tensor=2)))}
    assert len(found) == 1
    assert len(set(found.pop())) == 3, "one batch is not another"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensor": 2, "data": 4}, "parallel.tensor = 2 with parallel.deterministic = True; it must be 1"),
        ({"deterministic_groups": 12}, "parallel.deterministic_groups = 12; it must be a power of 2"),
        ({"deterministic_groups": 8, "data": 8}, "parallel.deterministic_groups = 8 is not divisible by 16"),
        ({"deterministic_groups": 32}, "train.batch_size = 16 is not divisible by parallel.deterministic_groups = 32"),
        ({"slice_gradients": "bfloat16"}, "parallel.slice_gradients = 'bfloat16' with parallel.deterministic"),
    ],
)
def test_what_it_cannot_do_is_said(change, message):
    parallel = dataclasses.replace(FIXED, **{"data": 8, **change})
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        validate(layout_runs.config_of("llama", parallel), 8)


def test_the_norm_does_not_depend_on_the_cut():
    tree = {"a": jnp.asarray(np.random.default_rng(0).standard_normal((64, 24)).astype(np.float32))}
    spec = {"a": params.Param((64, 24), ("embed", None), params.zeros())}

    def norm(num: int) -> float:
        parallel = ParallelConfig(data=1, fsdp=num)
        config = layout_runs.config_of("llama", parallel)
        mesh = sharding.make_mesh(parallel, jax.devices()[:num])
        return float(jax.jit(lambda t: deterministic.norm(config, mesh, spec, {"a": P("fsdp", None)}, t))(tree))

    assert norm(1) == norm(2) == norm(8)
    np.testing.assert_allclose(norm(8), np.linalg.norm(tree["a"]), rtol=1e-6)
