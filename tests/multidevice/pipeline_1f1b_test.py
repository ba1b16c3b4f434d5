"""The pipeline of few waiting microbatches gives the one-device run, moves what it owes, and its
memory does not grow with m.

Models, layouts and tolerances are those of pipeline_test.py.
"""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest
from grids import few

import pipeline_test as pipelines
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import MODELS, Compute
from bigmodel_jax.objectives import OBJECTIVES, NextToken
from bigmodel_jax.training.pipeline.schedule_1f1b import Schedule
from bigmodel_jax.training.state import abstract_state
from bigmodel_jax.training.step import make_train_step


def layout(*args, remat: bool = False, **axes) -> ParallelConfig:
    parallel = pipelines.layout(*args, **axes)
    return dataclasses.replace(parallel, pipeline_schedule="1f1b", pipeline_remat=remat)


LAYOUTS = {
    "1f1b": layout(4, 8),
    "one_wave": layout(4, 4),
    "interleaved": layout(2, 8, 4),
    "remat": layout(4, 8, 2, remat=True),
    "data": layout(2, 4, 2, data=4),
    "fsdp": layout(4, 8, 2, fsdp=2),
    "tensor": layout(2, 4, 2, tensor=2),
    "seq": layout(2, 4, seq=2),
    "fsdp_tensor": layout(2, fsdp=2, tensor=2),
}


@pytest.mark.slow
# Slow: two axes beside the stages; the rounds are those of the kinds below.
@pytest.mark.parametrize("name", few(LAYOUTS, "fsdp_tensor"))
def test_every_layout_equals_one_device(name, note):
    note("1f1b", "llama", LAYOUTS[name], *pipelines.check("llama", LAYOUTS[name]))


KEPT = ("llama_remat", "llama_unrolled", "gemma3", "bert", "deberta", "vit", "deepseek")
AGAIN = ("llama_remat", "gemma3", "deberta", "deepseek")


@pytest.mark.exhaustive
@pytest.mark.parametrize(("case", "remat"), [*((case, True) for case in AGAIN), *((case, False) for case in KEPT)])
def test_every_kind_of_model_equals_one_device(case, remat, note):
    parallel = layout(2, 4, 2, fsdp=2, remat=remat)
    note("1f1b", case, parallel, *pipelines.check(case, parallel))


OF_MICROBATCHES = [
    ("mixtral", layout(2, 4, 2)),
    ("mixtral", layout(4, 8, expert=2)),
    ("mixtral", layout(2, 4, 2, fsdp=2, remat=True)),
    ("dit", layout(2, 4, 2)),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "parallel"),
    # Slow: experts, two rounds and a second axis, computed again in the backward pass.
    [pytest.param(*one, marks=[] if one == OF_MICROBATCHES[2] else pytest.mark.exhaustive) for one in OF_MICROBATCHES],
)
def test_what_is_a_microbatchs_equals_gradients_accumulated_over_the_same_microbatches(case, parallel, note):
    """The balance of experts and the draws for a row belong to a microbatch."""
    losses, norms, tree = accumulated(case, parallel.stage, parallel.pipeline_microbatches)
    got_losses, got_norms, got = pipelines.run(case, parallel)
    np.testing.assert_allclose(got_losses, losses, rtol=2e-6)
    np.testing.assert_allclose(got_norms, norms, rtol=1e-5)
    weight = max(np.abs(params.paths(got[0])[path] - leaf).max() for path, leaf in params.paths(tree[0]).items())
    note("1f1b", case, parallel, np.abs(got_losses / losses - 1).max(), weight)
    for path, leaf in params.paths(tree[0]).items():
        np.testing.assert_allclose(params.paths(got[0])[path], leaf, atol=2e-5, err_msg=path)


@functools.cache
def accumulated(case: str, stages: int, microbatches: int):
    """One device with `train.microbatches`, its batches in such an order that its microbatches are
    the pipeline's, by home and wave, as keys are dealt."""
    n, m, rows = stages, microbatches, pipelines.ROWS
    order = np.empty(rows, int)
    for i in range(m):
        for row in range(rows // m):
            order[row * m + i] = i // (m // n) * (rows // n) + row * (m // n) + i % (m // n)
    name = f"{case} in the order of {n} stages, {m} microbatches"
    model, objective, batch = pipelines.CASES[case]
    reordered = lambda step: {k: v[order] for k, v in batch(step).items()}  # noqa: E731
    pipelines.CASES[name] = (model, objective, reordered)
    try:
        return pipelines.run(name, ParallelConfig(data=1), microbatches=m)
    finally:
        del pipelines.CASES[name]


@pytest.mark.exhaustive
def test_dropout_is_the_same_where_layers_are_computed_again():
    model, *rest = pipelines.CASES["bert"]
    pipelines.CASES["dropout"] = (dataclasses.replace(model, dropout=0.2), *rest)
    try:
        kept, again = (pipelines.run("dropout", layout(2, 4, 2, remat=remat)) for remat in (False, True))
    finally:
        del pipelines.CASES["dropout"]
    np.testing.assert_array_equal(kept[0], again[0])


@pytest.mark.exhaustive
def test_inside_accumulated_gradients():
    pipelines.check("llama", layout(2, 4, 2, data=2), microbatches=2)


# ----------------------------------------------------------------------------------------- compiled


@pytest.mark.exhaustive
@pytest.mark.parametrize("rounds", few((1, 2), 2))
def test_stages_hand_on_what_they_owe_and_gather_no_weight(rounds, note):
    parallel = layout(4, 8, rounds, fsdp=2)
    found = pipelines.program("llama", parallel)
    moved = sum(c.sent for c in found if c.kind == "collective-permute" and c.axes == ("stage",))
    due = pipelines.owed(pipelines.CASES["llama"][0], parallel)
    note("1f1b", "llama", parallel, moved=[("stage", moved, due, pipelines.formula(parallel))])
    assert moved == pytest.approx(due, rel=0.05)
    for c in found:
        if "stage" in c.axes and c.kind != "collective-permute":
            # Once a step, of what is outside the layers: sums of gradients, and of scalars.
            assert c.kind == "all-reduce", c
            assert max(shape.count(",") for shape in c.shapes) < 2, c
            assert c.count == 1, c


def temporaries(microbatches: int, schedule: str, *, remat: str, pipeline_remat: bool) -> int:
    """Bytes of temporaries on one device. A step has microbatches of 2 rows of 64 tokens, and 8
    layers on 4 stages."""
    model = dataclasses.replace(pipelines.CASES["llama"][0], embed_dim=64, mlp_dim=256, compute=Compute(remat=remat))
    parallel = dataclasses.replace(layout(4, microbatches), pipeline_schedule=schedule, pipeline_remat=pipeline_remat)
    config = pipelines.config_of("llama", parallel)
    config = dataclasses.replace(
        config, model=model, train=dataclasses.replace(config.train, batch_size=2 * microbatches)
    )
    mesh = sharding.make_mesh(parallel, jax.devices()[:4])
    place = sharding.batch_sharding(mesh, parallel.rules, ("seq",))
    batch = {
        k: jax.ShapeDtypeStruct((2 * microbatches, 64), v.dtype, sharding=place) for k, v in pipelines.text(0).items()
    }
    compiled = make_train_step(config, mesh).lower(abstract_state(config, mesh), batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("remat", "pipeline_remat"),
    few([("none", False), ("full", False), ("full", True)], ("full", True)),
)
def test_memory_does_not_grow_with_the_number_of_microbatches(remat, pipeline_remat):
    options = {"remat": remat, "pipeline_remat": pipeline_remat}
    few, many = (temporaries(m, "1f1b", **options) for m in (12, 48))
    of_gpipe = [temporaries(m, "gpipe", **options) for m in (12, 48)]
    assert many < 1.1 * few
    assert of_gpipe[1] > 1.5 * of_gpipe[0]
    assert many < 0.6 * of_gpipe[1]


# ----------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize("schedule", [Schedule(2, 2, 1), Schedule(4, 16, 1), Schedule(3, 9, 2), Schedule(4, 8, 3)])
def test_every_pass_comes_once_and_after_what_it_needs(schedule):
    n, m, r = schedule.n, schedule.m, schedule.r
    forward, backward = {}, {}
    for t in range(schedule.delay + schedule.one_way):
        for passes, (valid, microbatch, round_) in (
            (forward, schedule.forward(t)),
            (backward, schedule.backward(t)),
        ):
            for stage in np.flatnonzero(valid):
                key = (int(microbatch[stage]), int(round_[stage]) * n + int(stage))
                assert key not in passes
                passes[key] = t
    assert len(forward) == len(backward) == m * r * n
    for (i, group), t in forward.items():
        assert t < backward[i, group]
        if group:
            assert forward[i, group - 1] == t - 1
            assert backward[i, group - 1] == backward[i, group] + 1
    # Forward passes alone, both, backward passes alone: the ticks that a stage idles in are
    # GPipe's.
    assert max(forward.values()) == schedule.one_way - 1
    assert min(backward.values()) == schedule.delay


@pytest.mark.parametrize(("n", "r"), [(2, 1), (4, 1), (4, 2), (3, 3), (8, 1)])
def test_slots_hold_what_waits_and_no_more_for_more_microbatches(n, r):
    for waves in (4, 16):
        schedule = Schedule(n, n * waves, r)
        slots, num = schedule.slots()
        assert num == n * (r + 2) - 1
        for stage in range(n):
            held = {}
            for t in range(schedule.delay + schedule.one_way):
                valid, i, j = (a[stage] for a in schedule.forward(t))
                if valid:
                    assert slots[i, j] not in held
                    held[slots[i, j]] = (i, j)
                valid, i, j = (a[stage] for a in schedule.backward(t))
                if valid:
                    assert held.pop(slots[i, j]) == (i, j)
            assert not held


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("model", "parallel", "message"),
    [
        (
            "t5",
            layout(2, 4),
            "parallel.pipeline_schedule = '1f1b' is for models of one stack of layers, and T5Config has",
        ),
        ("transformer", layout(2, 4), "is for models of one stack of layers, and TransformerConfig has several"),
        ("llama", layout(1), "pipeline_schedule need parallel.stage of 2 or more"),
        ("offload", layout(2, 4), "model.compute.remat = 'offload_input' needs parallel.pipeline_remat = True"),
        ("whole", layout(2, 4), "is for models in parts (models/base.py, Parts), and Whole brings `apply` alone"),
    ],
)
def test_what_it_is_not_for_is_one_line(model, parallel, message):
    config = pipelines.config_of("llama", parallel)
    offload = dataclasses.replace(config.model, compute=Compute(remat="offload_input"))
    cfg = {"offload": offload, "whole": Whole()}.get(model)
    config = dataclasses.replace(config, model=cfg or MODELS[model].tiny())
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        validate(config, math.prod(parallel.sizes()))
    assert "\n" not in str(error.value)


class Whole(type(pipelines.CASES["llama"][0])):
    """A Llama around which a user has put a function."""

    def make(self):
        model = super().make()
        return model._replace(apply=lambda *args, **options: model.apply(*args, **options))


class Doubled(NextToken):
    """A user's objective that doubles the loss of another."""

    def loss(self, *args, **options):
        loss = super().loss(*args, **options)
        return loss._replace(mean=Mean(2 * loss.mean.total, loss.mean.count))


class DoubledScore(NextToken):
    def score(self, *args, **options):
        return super().score(*args, **options)


def test_an_objective_whose_loss_is_not_its_score_is_one_line_and_trains_elsewhere():
    config = dataclasses.replace(pipelines.config_of("llama", layout(2, 4)), objective=Doubled())
    with pytest.raises(
        ValueError, match=r"defines score\(out, batch\), and Doubled defines its loss\(\) alone"
    ) as error:
        validate(config, 2)
    assert "\n" not in str(error.value)
    for accepted in (
        dataclasses.replace(config, parallel=pipelines.layout(2, 4)),
        dataclasses.replace(config, objective=DoubledScore()),
    ):
        validate(accepted, 2)
    assert {name for name, cls in OBJECTIVES.items() if not cls().scores} == {"distillation", "kto", "latent_flow"}
