"""The pipeline gives the one-device run, in every combination, and moves between stages what it
owes and nothing else.

Tolerances as in layouts_test.py. Adam divides a gradient by its own size: with an eps of 1e-8, an
element whose gradient is that small would move by the learning rate in whichever direction its last
bits say. Here eps is 1e-5; and at a learning rate well below the initial values no embedding comes
near zero, where its norm would magnify the last bits as well.
"""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest
from grids import few
from text_axes import axes

import layout_runs
from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import MODELS, Compute
from bigmodel_jax.models.base import ModelConfig
from bigmodel_jax.nn import pipeline
from bigmodel_jax.objectives import Classification, Diffusion, MaskedLanguageModel, NextToken
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.plan.program.hlo import Collective, collectives
from bigmodel_jax.training.state import abstract_state, init_state
from bigmodel_jax.training.step import make_train_step

STEPS, ROWS, LENGTH = 5, 16, 16


def text(step: int, vocab: int = 64) -> dict:
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, vocab, (ROWS, LENGTH + 1)).astype(np.int32)
    segments = np.sort(rng.integers(0, 4, (ROWS, LENGTH)), axis=1)[:, ::-1].astype(np.int32)  # 0, padding, last
    starts = np.maximum.accumulate(np.where(np.diff(segments, prepend=-1) != 0, np.arange(LENGTH), 0), axis=1)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segments,
        "positions": (np.arange(LENGTH) - starts).astype(np.int32),
        "weights": (rng.random((ROWS, LENGTH)) < 0.8).astype(np.float32) * (segments > 0),
    }


def pairs(step: int) -> dict:
    batch = text(step)
    return batch | {"encoder_tokens": batch["targets"], "encoder_segment_ids": batch["segment_ids"]}


def images(step: int) -> dict:
    rng = np.random.default_rng(step)
    return {
        "image": rng.random((ROWS, 8, 8, 1), np.float32),
        "label": rng.integers(0, 10, ROWS).astype(np.int32),
        "weights": np.ones(ROWS, np.float32),
    }


def tiny(name: str, **changes) -> ModelConfig:
    return dataclasses.replace(MODELS[name].tiny(), **changes)


CASES = {
    "llama": (tiny("llama", num_layers=8), NextToken(), text),
    "llama_remat": (tiny("llama", num_layers=8, compute=Compute(remat="full")), NextToken(), text),
    "llama_unrolled": (tiny("llama", num_layers=8, compute=Compute(unroll=True)), NextToken(), text),
    "mixtral": (tiny("mixtral", num_layers=4), NextToken(), text),
    "qwen3_next": (tiny("qwen3_next", num_layers=8), NextToken(), text),
    "deepseek": (tiny("deepseek", num_layers=5, num_mtp_layers=1), NextToken(), text),
    "gemma3": (tiny("gemma3", num_layers=4), NextToken(), text),
    "bert": (tiny("bert", num_layers=4), MaskedLanguageModel(), text),
    "deberta": (tiny("deberta", num_layers=4), MaskedLanguageModel(), text),
    "t5": (tiny("t5"), NextToken(), pairs),
    "vit": (tiny("vit", num_layers=4), Classification(), images),
    "dit": (tiny("dit", num_layers=4), Diffusion(), images),
}


def config_of(case: str, parallel: ParallelConfig, microbatches: int = 1) -> Config:
    model, objective, _ = CASES[case]
    return Config(
        model=model,
        objective=objective,
        data=DataConfig(),
        optim=OptimConfig(lr=2e-3, clip=0.5, eps=1e-5),
        parallel=parallel,
        train=TrainConfig(steps=STEPS, batch_size=ROWS, microbatches=microbatches),
    )


def run(case: str, parallel: ParallelConfig, microbatches: int = 1):
    """(losses, gradient norms, final parameters) of 5 steps."""
    config = config_of(case, parallel, microbatches)
    mesh = sharding.make_mesh(parallel, jax.devices()[: max(math.prod(parallel.sizes()), 1)])
    state, step = init_state(config, mesh), make_train_step(config, mesh)
    losses, norms = [], []
    for i in range(STEPS):
        batch = CASES[case][2](i)
        batch = {k: jax.device_put(v, sharding.batch_sharding(mesh, parallel.rules, axes(v))) for k, v in batch.items()}
        state, sums = step(state, batch)
        losses.append(float(sums["loss"].compute()))
        norms.append(float(sums["grad_norm"].compute()))
    assert not layout_runs.not_cut(state, config, mesh)
    return np.array(losses), np.array(norms), sharding.to_host((state.params, state.frozen))


@functools.cache
def one_device(case: str):
    return run(case, ParallelConfig(data=1))


def layout(stage: int, microbatches: int = 0, rounds: int = 1, *, data: int = 1, **axes) -> ParallelConfig:
    return ParallelConfig(stage, data, pipeline_microbatches=microbatches, pipeline_rounds=rounds, **axes)


def check(case: str, parallel: ParallelConfig, microbatches: int = 1) -> tuple[float, float]:
    """Asserts that losses, gradient norms and parameters are those of one device. Returns the
    largest differences of losses and of parameters."""
    losses, norms, tree = one_device(case)
    got_losses, got_norms, got = run(case, parallel, microbatches)
    weight = 0.0
    np.testing.assert_allclose(got_losses, losses, rtol=2e-6)
    np.testing.assert_allclose(got_norms[0], norms[0], rtol=2e-6)
    for mine, theirs in zip(got, tree, strict=True):
        for path, leaf in params.paths(theirs).items():
            np.testing.assert_allclose(params.paths(mine)[path], leaf, atol=2e-5, err_msg=path)
            weight = max(weight, np.abs(params.paths(mine)[path] - leaf).max(initial=0))
    assert losses[-1] != losses[0]
    return np.abs(got_losses / losses - 1).max(), weight


LAYOUTS = {
    "gpipe": layout(4, 8),
    "circular": layout(2, 2, 4),
    "stage_remat": dataclasses.replace(layout(2, 4, 2), pipeline_remat=True),
    "stage_data": layout(2, 4, 2, data=4),
    "stage_fsdp": layout(4, 8, 2, fsdp=2),
    "stage_tensor": layout(2, 4, 2, tensor=2),
    "stage_fsdp_tensor": layout(2, fsdp=2, tensor=2),
}


@pytest.mark.slow
# Slow: rounds. The next test and pipeline_1f1b_test.py have further axes beside the stages.
@pytest.mark.parametrize("name", few(LAYOUTS, "circular"))
def test_every_layout_equals_one_device(name, note):
    note("gpipe", "llama", LAYOUTS[name], *check("llama", LAYOUTS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("case", few([case for case in CASES if case != "llama"], "t5"))
def test_every_kind_of_model_equals_one_device(case, note):
    parallel = layout(2, 4, 1 if case in ("t5", "deepseek", "qwen3_next") else 2, fsdp=2)
    note("gpipe", case, parallel, *check(case, parallel))


@pytest.mark.exhaustive
def test_pipeline_inside_accumulated_gradients():
    check("llama", layout(2, 4, 2, data=2), microbatches=2)


# ----------------------------------------------------------------------------------------- compiled


def program(case: str, parallel: ParallelConfig) -> list[Collective]:
    """The collectives of the compiled step."""
    config = config_of(case, parallel)
    mesh = sharding.make_mesh(parallel, jax.devices()[: math.prod(parallel.sizes())])
    batch = {
        k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding.batch_sharding(mesh, parallel.rules, axes(v)))
        for k, v in CASES[case][2](0).items()
    }
    compiled = make_train_step(config, mesh).lower(abstract_state(config, mesh), batch).compile()
    return collectives(compiled.as_text(), mesh)


def owed(cfg: ModelConfig, parallel: ParallelConfig) -> int:
    """Bytes that a device hands on in a step, float32.

    At every tick the microbatch that a stage has done, and one each on the way in and out: 3 x
    forward, 3 x backward. What the layers share (positions, segments, cosines and sines, of which
    the backward pass returns nothing) goes with the first two. With several rounds, the groups of
    layers are dealt out and their gradients returned, one group an exchange.
    """
    n, m, r = parallel.stage, parallel.pipeline_microbatches, parallel.pipeline_rounds
    tokens = ROWS // m // (parallel.data * parallel.fsdp) * LENGTH
    a_tick = tokens * 4 * (6 * cfg.embed_dim + 2 * (1 + 1 + cfg.head_dim))
    group = 4 * sum(p.size for p in params.paths(cfg.make().spec["layers"]).values()) // (n * r * parallel.fsdp)
    exchanges = sum(any(a != b for a, b in pairs) for pairs, _, _ in pipeline.moves(n, r)) if r > 1 else 0
    return pipeline.ticks(n, m, r) * a_tick + 2 * exchanges * group


def formula(parallel: ParallelConfig) -> str:
    ticks = pipeline.ticks(parallel.stage, parallel.pipeline_microbatches, parallel.pipeline_rounds)
    exchanges = 2 * (len(pipeline.moves(parallel.stage, parallel.pipeline_rounds)) - 1)
    return f"{ticks} (6 x + 2 s)" + (f" + {exchanges} g" if parallel.pipeline_rounds > 1 else "")


@pytest.mark.slow
@pytest.mark.parametrize("rounds", few((1, 2), 2))
def test_stages_hand_on_what_they_owe_and_gather_no_weight(rounds, note):
    parallel = layout(4, 8, rounds, fsdp=2)
    found = program("llama", parallel)
    assert {c.kind for c in found} == {"collective-permute", "all-gather", "all-reduce"}
    moved = sum(c.sent for c in found if c.kind == "collective-permute" and c.axes == ("stage",))
    due = owed(CASES["llama"][0], parallel)
    note("gpipe", "llama", parallel, moved=[("stage", moved, due, formula(parallel))])
    assert moved == pytest.approx(due, rel=0.05)
    for c in found:
        if c.kind == "collective-permute":
            assert c.axes == ("stage",)
        elif "stage" in c.axes:
            # Outside the layers the stages share the batch: sums of gradients there, and of
            # scalars.
            assert c.kind == "all-reduce", c
            assert max(shape.count(",") for shape in c.shapes) < 2, c


@pytest.mark.parametrize(("stages", "rounds"), [(2, 2), (4, 2), (3, 2), (2, 5), (4, 3), (4, 4)])
def test_dealing_sends_every_group_where_its_round_is(stages, rounds):
    held = np.arange(stages * rounds).reshape(stages, rounds)
    dealt = np.full((stages, rounds), -1)
    for pairs, slots, new_slots in pipeline.moves(stages, rounds):
        assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
        for a, b in pairs:
            dealt[b, new_slots[b]] = held[a, slots[a]]
    np.testing.assert_array_equal(dealt, np.arange(stages * rounds).reshape(rounds, stages).T)


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (layout(4, 6), "parallel.pipeline_microbatches = 6 is not a multiple of parallel.stage = 4"),
        (
            layout(2, 2, 3),
            "8 layers of the model are not divisible by parallel.stage = 2 x parallel.pipeline_rounds = 3",
        ),
        (layout(8, 32), "train.batch_size = 16 is not divisible by 32"),
        (layout(2, 2, 0), "parallel.pipeline_rounds = 0; it must be 1 or more"),
        (layout(2, -2), "parallel.pipeline_microbatches = -2; it must be 0 or more"),
        (layout(1, 4), "need parallel.stage of 2 or more"),
        (dataclasses.replace(layout(2), rules=Rules(batch=("data",))), "it must hold 'stage' where parallel.stage"),
    ],
)
def test_what_does_not_divide_is_one_line(parallel, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        validate(config_of("llama", parallel), math.prod(parallel.sizes()))
    assert "\n" not in str(error.value)


def test_a_model_without_a_stack_has_no_stages():
    config = dataclasses.replace(config_of("vit", layout(2)), model=MODELS["mlp"].tiny())
    with pytest.raises(ValueError, match="parallel.stage = 2: MLPConfig has no stack of equal layers to cut"):
        validate(config, 2)
