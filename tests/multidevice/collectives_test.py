"""The compiled FSDP step is read: it gathers weights, reduces gradients, and moves nothing else of
size.

XLA's CPU backend has no reduce-scatter: it writes one as an all-reduce whose result each device
then cuts its shard from, so here a reduction of exactly a gradient's shape stands for both.
"""

import collections
import math

import jax
import numpy as np
import pytest

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.plan.program import hlo, instructions
from bigmodel_jax.training.state import abstract_state
from bigmodel_jax.training.step import make_train_step

# Distinct sizes, so that a shape in the program names its tensor.
MODEL = LlamaConfig(
    vocab_size=512, num_layers=3, embed_dim=64, num_heads=4, num_kv_heads=2, head_dim=24, mlp_dim=160, max_seq_len=40
)
ROWS, LENGTH = 16, 40
SMALL = 2048  # elements: norms, scalars and row numbers stay below


def collectives(parallel: ParallelConfig) -> dict[str, list[tuple[int, ...]]]:
    """{kind: sorted dims of every result of at least SMALL elements} of the compiled step."""
    config = Config(MODEL, NextToken(), DataConfig(), parallel=parallel, train=TrainConfig(steps=4, batch_size=ROWS))
    mesh = sharding.make_mesh(parallel)
    where = sharding.batch_sharding(mesh, parallel.rules, ("seq",))
    names = {
        "tokens": np.int32,
        "targets": np.int32,
        "segment_ids": np.int32,
        "positions": np.int32,
        "weights": np.float32,
    }
    batch = {k: jax.ShapeDtypeStruct((ROWS, LENGTH), d, sharding=where) for k, d in names.items()}
    program = make_train_step(config, mesh).lower(abstract_state(config, mesh), batch).compile().as_text()
    found = collections.defaultdict(list)
    for one in hlo.collectives(program, mesh):
        dims = [tuple(sorted(d for d in instructions.dims(shape) if d != 1)) for shape in one.shapes]
        if one.kind == "all-to-all":  # its results are the pieces, one per device
            dims = [(sum(map(math.prod, dims)),)]
        found[one.kind] += [d for d in dims if math.prod(d) >= SMALL]
    return found


def weight_shapes() -> list[tuple[int, ...]]:
    """Sorted dims of each large weight as the step uses it: one layer's slice of a stacked one."""
    out = []
    for path, p in params.paths(MODEL.make().spec).items():
        shape = p.shape[1:] if path.startswith("layers/") else p.shape
        out.append(tuple(sorted(shape)))
    return [s for s in out if math.prod(s) >= SMALL]


@pytest.fixture(scope="module")
def fsdp():
    return collectives(ParallelConfig(data=1, fsdp=8))


def test_fsdp_gathers_each_weight_forward_and_backward_and_nothing_else(fsdp):
    gathered = collections.Counter(fsdp["all-gather"])
    owed = collections.Counter(weight_shapes())
    assert set(gathered) == set(owed)
    for shape, count in gathered.items():
        # Once in the forward and once in the backward pass; the tables at either end live through
        # both.
        assert owed[shape] <= count <= 2 * owed[shape], (shape, count)


def test_fsdp_reduces_each_gradient_once_and_nothing_else(fsdp):
    reduced = collections.Counter(fsdp["all-reduce"] + fsdp["reduce-scatter"])
    assert reduced == collections.Counter(weight_shapes())


def test_fsdp_moves_no_activation(fsdp):
    assert set(fsdp) <= {"all-gather", "all-reduce", "reduce-scatter"}


@pytest.mark.slow
def test_plain_data_parallel_gathers_nothing():
    found = collectives(ParallelConfig(data=8))
    assert set(found) == {"all-reduce"}
    # The gradients of stacked layers are reduced whole, after the loop, or layer by layer inside
    # it.
    stacked = [tuple(sorted(p.shape)) for p in params.paths(MODEL.make().spec).values() if p.size >= SMALL]
    assert set(found["all-reduce"]) <= set(stacked) | set(weight_shapes())


@pytest.mark.slow
def test_a_model_whose_activations_travel_is_caught(monkeypatch):
    """The check can fail: an embedding cut along its dimension exchanges activations."""
    from bigmodel_jax.nn import linear

    monkeypatch.setattr(linear, "constrain", lambda x, *names: x)
    found = collectives(ParallelConfig(data=1, fsdp=8))
    assert found["all-to-all"]
