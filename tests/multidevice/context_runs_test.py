"""Whole runs whose sequences are cut over devices take the steps of one device, by a ring and by
exchanging heads."""

import dataclasses

import jax
import numpy as np
import pytest
from text_axes import axes

import layout_runs
from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import BertConfig, Compute, LlamaConfig, MixtralConfig, ViTConfig
from bigmodel_jax.objectives import Classification, MaskedLanguageModel, NextToken
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import make_train_step

STEPS, ROWS = 5, 16


def text_batch(step: int) -> dict:
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, 64, (ROWS, 17)).astype(np.int32)
    segments = np.sort(rng.integers(1, 4, (ROWS, 16)), axis=1).astype(np.int32)
    starts = np.maximum.accumulate(np.where(np.diff(segments, prepend=0) > 0, np.arange(16), 0), axis=1)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segments,
        "positions": (np.arange(16) - starts).astype(np.int32),
        "weights": (rng.random((ROWS, 16)) < 0.8).astype(np.float32),
    }


def image_batch(step: int) -> dict:
    rng = np.random.default_rng(step)
    images = rng.random((ROWS, 8, 8, 1), np.float32)
    return {"image": images, "label": rng.integers(0, 10, ROWS).astype(np.int32), "weights": np.ones(ROWS, np.float32)}


MODELS = {
    "llama": (LlamaConfig.tiny(), NextToken(), text_batch),
    "mixtral": (MixtralConfig.tiny(), NextToken(), text_batch),
    "bert": (BertConfig.tiny(), MaskedLanguageModel(), text_batch),
    # 1 + 4 patches: the devices do not divide them.
    "vit": (ViTConfig.tiny(), Classification(), image_batch),
}
MESHES = {
    "seq": ParallelConfig(data=1, seq=8),
    "seq_data": ParallelConfig(data=2, seq=4),
    "seq_fsdp": ParallelConfig(data=1, fsdp=2, seq=4),
    "seq_tensor": ParallelConfig(data=2, seq=2, tensor=2),
    "seq_stage": ParallelConfig(data=2, stage=2, seq=2),
    "ulysses_fsdp": ParallelConfig(data=1, fsdp=2, seq=4, context="ulysses"),
    "ulysses_tensor": ParallelConfig(data=2, seq=2, tensor=2, context="ulysses"),
}


def train(model: str, parallel: ParallelConfig, num_devices: int):
    """(losses, final parameters) of 5 steps."""
    cfg, objective, batches = MODELS[model]
    config = Config(
        model=cfg,
        objective=objective,
        data=DataConfig(),
        # eps: where a gradient is zero but for rounding, Adam would divide rounding by rounding.
        optim=OptimConfig(lr=1e-2, clip=0.5, eps=1e-5),
        parallel=parallel,
        train=TrainConfig(steps=STEPS, batch_size=ROWS),
    )
    mesh = sharding.make_mesh(parallel, jax.devices()[:num_devices])
    state, step = init_state(config, mesh), make_train_step(config, mesh)
    losses = []
    for i in range(STEPS):
        batch = {
            k: jax.device_put(v, sharding.batch_sharding(mesh, parallel.rules, axes(v))) for k, v in batches(i).items()
        }
        state, sums = step(state, batch)
        losses.append(float(sums["loss"].compute()))
    assert not layout_runs.not_cut(state, config, mesh)
    return np.array(losses), sharding.to_host(state.params)


@pytest.fixture(scope="module")
def one_device():
    done = {}

    def get(model):
        if model not in done:
            done[model] = train(model, ParallelConfig(data=1), 1)
        return done[model]

    return get


# Every mesh for the dense decoder, fewer for the others. One of all is quick.
CHOSEN = {
    "llama": MESHES,
    "mixtral": ("seq_fsdp", "ulysses_tensor"),
    "bert": ("seq_tensor", "ulysses_fsdp"),
    "vit": ("seq_fsdp", "ulysses_tensor"),
}
QUICK = ("llama", "seq_fsdp")
SLOW = {("llama", mesh) for mesh in ("seq_tensor", "seq_stage")}
SLOW |= {("mixtral", "seq_fsdp"), ("bert", "ulysses_fsdp"), ("vit", "ulysses_tensor")}


def marks(pair: tuple[str, str]) -> list:
    return [] if pair == QUICK else [pytest.mark.slow if pair in SLOW else pytest.mark.exhaustive]


PAIRS = [pytest.param(model, mesh, marks=marks((model, mesh))) for model, meshes in CHOSEN.items() for mesh in meshes]


@pytest.mark.few("llama-seq_stage")
@pytest.mark.parametrize(("model", "mesh"), PAIRS)
def test_a_run_equals_one_device(model, mesh, one_device, note):
    losses, trained = one_device(model)
    got_losses, got = train(model, MESHES[mesh], 8)
    weight = max(np.abs(leaf - params.paths(trained)[path]).max() for path, leaf in params.paths(got).items())
    note("sequence", model, MESHES[mesh], np.abs(got_losses / losses - 1).max(), weight)
    np.testing.assert_allclose(got_losses, losses, rtol=2e-6)
    for path, leaf in params.paths(got).items():
        np.testing.assert_allclose(leaf, params.paths(trained)[path], atol=2e-5, err_msg=path)
    assert losses[-1] != losses[0]


@pytest.mark.few("full")
@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "offload_attn"])
def test_what_is_computed_again_or_kept_elsewhere_changes_nothing(remat, one_device, monkeypatch):
    """Under remat a ring computes its outputs and log-sums again, or keeps them in the host's
    memory."""
    monkeypatch.setitem(
        MODELS, remat, (dataclasses.replace(LlamaConfig.tiny(), compute=Compute(remat=remat)), NextToken(), text_batch)
    )
    losses, trained = one_device("llama")
    got_losses, got = train(remat, MESHES["seq_fsdp"], 8)
    np.testing.assert_allclose(got_losses, losses, rtol=2e-6)
    for path, leaf in params.paths(got).items():
        np.testing.assert_allclose(leaf, params.paths(trained)[path], atol=2e-5, err_msg=path)


@pytest.mark.exhaustive
def test_prediction_further_ahead_is_untouched_by_the_order():
    """Multi-token prediction shifts along the sequence, and the zig-zag order of attention does not
    reach it."""
    from bigmodel_jax.models import DeepseekConfig

    MODELS["deepseek"] = (dataclasses.replace(DeepseekConfig.tiny(), num_mtp_layers=1), NextToken(), text_batch)
    losses, trained = train("deepseek", ParallelConfig(data=1), 1)
    got_losses, got = train("deepseek", MESHES["seq_data"], 8)
    np.testing.assert_allclose(got_losses, losses, rtol=2e-6)
    for path, leaf in params.paths(got).items():
        np.testing.assert_allclose(leaf, params.paths(trained)[path], atol=2e-5, err_msg=path)
