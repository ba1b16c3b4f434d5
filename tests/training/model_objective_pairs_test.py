"""A row of two texts, its data and its objective from a config file: the same training on every
mesh and in pieces."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from bigmodel_jax import config_file
from bigmodel_jax.config import TrainConfig
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import make_iterator
from bigmodel_jax.plan import sums, worker
from bigmodel_jax.report.throughput import step_size
from bigmodel_jax.training.run import train
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import make_train_step

FILE = Path(__file__).parents[1] / "examples" / "own_data_and_objective.py"
STEPS, ROWS = 2, 16


def config_of(parallel: ParallelConfig, microbatches: int = 1):
    config = config_file.load(FILE)
    run = TrainConfig(steps=STEPS, batch_size=ROWS, microbatches=microbatches)
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, num_layers=1), parallel=parallel, train=run
    )


@functools.cache
def trained(parallel: ParallelConfig, microbatches: int = 1):
    """(losses, parameters) after the steps, and the shards of the batch."""
    config = config_of(parallel, microbatches)
    num = int(np.prod(parallel.sizes()))
    validate(config, num)
    mesh = sharding.make_mesh(parallel, jax.devices()[:num])
    state, step, losses = init_state(config, mesh), make_train_step(config, mesh), []
    batches = make_iterator(config.data, batch_size=ROWS, seed=0, mesh=mesh)
    for _ in range(STEPS):
        batch = next(batches)
        state, found = step(state, batch)
        losses.append(float(found["loss"].compute()))
    shards = {name: x.sharding.shard_shape(x.shape) for name, x in batch.items()}
    return np.array(losses), params.paths(sharding.to_host(state.params)), shards


MESHES = {
    "data": (ParallelConfig(data=4), 1, (4, 2, 16)),
    "fsdp": (ParallelConfig(data=2, fsdp=2), 1, (4, 2, 16)),
    "seq": (ParallelConfig(data=2, seq=4), 1, (8, 2, 4)),
    "microbatches": (ParallelConfig(data=1), 4, (16, 2, 16)),
    "all": (ParallelConfig(data=2, fsdp=2, seq=2), 2, (4, 2, 8)),
}


@pytest.mark.exhaustive  # multidevice/pairs_layouts_test.py has rows of two texts on a mesh in the slow suite
@pytest.mark.parametrize("case", MESHES)
def test_pairs_train_alike_on_every_mesh_and_in_pieces(case):
    parallel, microbatches, shard = MESHES[case]
    losses, weights, shards = trained(parallel, microbatches)
    want, wanted, _ = trained(ParallelConfig(data=1))
    assert shards == {"tokens": shard, "targets": shard, "weights": shard[:1]}
    np.testing.assert_allclose(losses, want, rtol=1e-5)
    for path, value in weights.items():
        np.testing.assert_allclose(value, wanted[path], atol=2e-4, err_msg=path)


def test_what_is_planned_and_counted_of_pairs():
    config = config_of(ParallelConfig(data=2, seq=4))
    mesh = sharding.make_mesh(config.parallel)
    batch = worker.abstract_batch(config, mesh)
    assert batch["tokens"].shape == (ROWS, 2, 16)
    assert batch["tokens"].sharding.shard_shape(batch["tokens"].shape) == (8, 2, 4)
    assert step_size(config.data, batch) == (ROWS, "examples"), "a pair counts once: its weight has no sequence"
    assert sums.tokens(config) == ROWS * 2 * 16 / 8
    flops, attention = worker.model_flops(config, mesh, batch)
    assert 0 < attention < flops


def test_a_mesh_that_does_not_divide_the_pairs_texts_is_named():
    config = config_of(ParallelConfig(data=1, seq=8))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, seq_len=12))
    with pytest.raises(ValueError, match=r"data\.seq_len = 12 is not divisible by parallel\.seq = 8"):
        validate(config, 8)


@pytest.mark.slow
def test_the_file_trains_and_its_metrics_are_on_the_page(tmp_path):
    scores = train(dataclasses.replace(config_file.load(FILE), parallel=ParallelConfig(data=8)), tmp_path / "run")
    assert scores["eval/right"] > 0.9
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Right" in page
