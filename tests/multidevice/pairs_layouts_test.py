"""Objectives over pairs on eight devices, whose losses and weights are those of one."""

import jax
import numpy as np
import pytest

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import DPO, KTO, ORPO, RewardModel, SimPO
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.state import init_constants, init_state
from bigmodel_jax.training.step import make_train_step

ROWS, LENGTH, STEPS = 16, 16, 3
LAYOUTS = {
    "data": ParallelConfig(data=8),
    "fsdp": ParallelConfig(data=1, fsdp=8),
    "fsdp-tensor": ParallelConfig(data=1, fsdp=4, tensor=2),
    "seq": ParallelConfig(data=4, seq=2),
}
OBJECTIVES = {
    "dpo": DPO(),
    "dpo-blocks": DPO(logits="blocks", form="sigmoid_norm"),
    "orpo": ORPO(),
    "simpo": SimPO(),
    "kto": KTO(),
    "reward": RewardModel(),
}
AXES = {"reference": (), "label": ()}  # else two texts a row, each laid along the sequence


def make_batch(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    tokens = rng.integers(2, 64, (ROWS, 2, LENGTH + 1)).astype(np.int32)
    prompts, place = rng.integers(1, 5, (ROWS, 1, 1)), np.arange(LENGTH)
    ends = prompts + rng.integers(1, LENGTH - 5, (ROWS, 2, 1))
    held = place <= ends
    return {
        "tokens": tokens[..., :-1] * held,
        "targets": tokens[..., 1:] * held,
        "segment_ids": held.astype(np.int32),
        "positions": np.broadcast_to(place, held.shape).astype(np.int32),
        "weights": ((place >= prompts - 1) & (place < ends)).astype(np.float32),
        "reference": rng.uniform(-60, -5, (ROWS, 2)).astype(np.float32),
        "label": rng.integers(0, 2, ROWS).astype(np.int32),
    }


def run(name: str, parallel: ParallelConfig, microbatches: int = 1):
    """(losses, parameters by path) of a few steps."""
    train = TrainConfig(steps=STEPS, batch_size=ROWS, microbatches=microbatches)
    optim = OptimConfig(lr=1e-2, eps=1e-4, schedule="constant")
    config = Config(LlamaConfig.tiny(), OBJECTIVES[name], DataConfig(), optim, parallel, train)
    mesh = sharding.make_mesh(parallel, jax.devices()[: 8 if parallel != ParallelConfig(data=1) else 1])
    state, fixed, step = init_state(config, mesh), init_constants(config, mesh), make_train_step(config, mesh)
    losses = []
    for i in range(STEPS):
        where = {k: sharding.batch_sharding(mesh, parallel.rules, AXES.get(k, (None, "seq"))) for k in make_batch(0)}
        state, sums = step(state, jax.device_put(make_batch(i), where), fixed)
        losses.append(float(sums["loss"].compute()))
    return np.array(losses), params.paths(sharding.to_host(state.params))


@pytest.fixture(scope="module")
def one_device():
    made = {}

    def of(name: str):
        if name not in made:
            made[name] = run(name, ParallelConfig(data=1))
        return made[name]

    return of


def marks(name: str, layout: str) -> list:
    return [pytest.mark.slow] if name == "dpo" and layout == "fsdp-tensor" else [pytest.mark.exhaustive]


@pytest.mark.parametrize(
    ("name", "layout"), [pytest.param(n, at, marks=marks(n, at), id=f"{n}-{at}") for n in OBJECTIVES for at in LAYOUTS]
)
def test_a_layout_is_one_device(name, layout, one_device):
    losses, weights = one_device(name)
    got, parameters = run(name, LAYOUTS[layout])
    assert losses[-1] != losses[0]
    np.testing.assert_allclose(got, losses, rtol=2e-6 if name != "kto" else 1e-5)
    for path, leaf in parameters.items():
        np.testing.assert_allclose(leaf, weights[path], atol=2e-5, err_msg=path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["dpo", "simpo", "reward"])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_a_pipeline_parts_no_pair(name, schedule, one_device):
    losses, _ = one_device(name)
    layout = ParallelConfig(data=4, stage=2, pipeline_schedule=schedule)
    np.testing.assert_allclose(run(name, layout)[0], losses, rtol=2e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["dpo", "simpo", "reward"])
def test_microbatches_of_a_layout_part_no_pair(name, one_device):
    losses, _ = one_device(name)
    np.testing.assert_allclose(run(name, LAYOUTS["fsdp"], 2)[0], losses, rtol=2e-6)
