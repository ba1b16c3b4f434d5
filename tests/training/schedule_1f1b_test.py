"""A pipeline whose backward passes begin early: its timetable, drawn by hand, and its gradients and
keys on a tiny model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.core.params import Param, ones
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import DataConfig
from bigmodel_jax.models import ModelConfig
from bigmodel_jax.models.base import Entry, Model, Out, Parts
from bigmodel_jax.objectives import Objective
from bigmodel_jax.objectives.base import Loss
from bigmodel_jax.training.pipeline.schedule_1f1b import Schedule
from bigmodel_jax.training.step import accumulate

# ------------------------------------------------------------------------------------ the timetable


def drawn(schedule: Schedule, way: str, ticks: int) -> list[str]:
    """One line for each stage: at every tick it has the microbatch and its round, or dots where the
    stage waits."""
    lines = [[] for _ in range(schedule.n)]
    for t in range(ticks):
        for line, valid, microbatch, round_ in zip(lines, *getattr(schedule, way)(t), strict=True):
            line.append(f"{microbatch}{'abc'[round_]}" if valid else "..")
    return [" ".join(line) for line in lines]


def test_two_stages_two_rounds_two_waves():
    """Forward passes go down the page. Backward passes go up from the tick at which the first wave
    is back at its stage."""
    schedule = Schedule(2, 4, 2)
    assert (schedule.period, schedule.delay, schedule.one_way) == (4, 5, 9)
    assert drawn(schedule, "forward", 10) == [
        "0a 1a 0b 1b 2a 3a 2b 3b .. ..",
        ".. 0a 1a 0b 1b 2a 3a 2b 3b ..",
    ]
    assert drawn(schedule, "backward", 15) == [
        ".. .. .. .. .. .. 1b 0b 1a 0a 3b 2b 3a 2a ..",
        ".. .. .. .. .. 1b 0b 1a 0a 3b 2b 3a 2a .. ..",
    ]


@pytest.mark.parametrize("sizes", [(2, 4, 1), (4, 8, 1), (2, 8, 3), (4, 4, 2), (3, 9, 2)])
def test_every_pass_comes_once_in_order_and_its_input_waits_in_a_slot_of_its_own(sizes):
    schedule = Schedule(*sizes)
    n, m, r = sizes
    at = {"forward": {}, "backward": {}}
    for way, found in at.items():
        for t in range(schedule.delay + schedule.one_way):
            for stage, (valid, microbatch, round_) in enumerate(zip(*getattr(schedule, way)(t), strict=True)):
                if valid:
                    assert (stage, int(microbatch), int(round_)) not in found
                    found[stage, int(microbatch), int(round_)] = t
        assert len(found) == n * m * r
    slots, num = schedule.slots()
    assert set(slots.ravel().tolist()) == set(range(num))
    assert num <= m * r
    for stage, microbatch, round_ in at["forward"]:
        here = (stage, microbatch, round_)
        later = [
            (s, microbatch, j) for s, j in [(stage + 1, round_), (0, round_ + 1)] if (s, microbatch, j) in at["forward"]
        ]
        assert all(at["forward"][here] < at["forward"][x] for x in later)
        assert all(at["backward"][here] > at["backward"][x] for x in later)
        assert at["forward"][here] <= at["backward"][here]
        for i, j in np.ndindex(m, r):  # who else waits in this slot has left it, or comes later
            if (i, j) != (microbatch, round_) and slots[i, j] == slots[microbatch, round_]:
                other = (stage, i, j)
                assert at["backward"][other] < at["forward"][here] or at["forward"][other] > at["backward"][here]


# ------------------------------------------------------------------------------------- a tiny model

LAYERS, WIDTH, ROWS = 8, 3, 16


@dataclasses.dataclass(frozen=True)
class Chain(ModelConfig):
    """A model of layers x -> tanh(w_n x + shift) between two products. Each layer reports what its
    key draws."""

    def make(self) -> Model:
        layer = {"w": Param((WIDTH,), ("embed",), ones())}
        spec = {"enter": Param((WIDTH,), ("embed",), ones()), "layers": params.stack(layer, LAYERS)}
        return Model(spec | {"leave": Param((WIDTH,), ("embed",), ones())}, Parts(enter, block, leave))


def enter(p, batch, *, rng, train, cache) -> Entry:
    of_layers, outside = jax.random.split(rng)
    x, shared = batch["x"] * p["enter"], (batch["shift"] * p["enter"], batch["number"])
    return Entry(x, jax.random.split(of_layers, LAYERS), shared, kept=outside)


def block(p, x, key, shift, number, *, train):
    draw = jax.nn.one_hot(number.min(), ROWS) * (1.0 + jax.random.uniform(key))
    new = jnp.tanh(x * p["w"] + shift)
    return new, (draw, jnp.sum(new**2))


def leave(p, entry, x, ys, batch, *, train) -> Out:
    draws, sizes = ys
    outside = jax.nn.one_hot(batch["number"].min(), ROWS) * (1.0 + jax.random.uniform(entry.kept))
    return Out(x * p["leave"], losses={"draws": draws, "sizes": sizes, "outside": outside})


@dataclasses.dataclass(frozen=True)
class Squares(Objective):
    def score(self, out, batch, *, params, train) -> Loss:
        total = jnp.sum(batch["weights"] * jnp.sum((out.value - batch["y"]) ** 2, -1)) + 0.1 * jnp.sum(
            out.losses["sizes"]
        )
        mean, none = Mean(total, jnp.sum(batch["weights"])), jnp.zeros(())
        return Loss(mean, {"loss": mean} | {k: Mean(out.losses[k], none) for k in ("draws", "outside")}, {})


RNG = np.random.default_rng(0)
BATCH = {
    **{name: RNG.standard_normal((ROWS, WIDTH)).astype(np.float32) for name in ("x", "y", "shift")},
    "weights": RNG.integers(0, 3, ROWS).astype(np.float32),
    "number": np.arange(ROWS, dtype=np.int32),
}
TREE = {
    "enter": np.array([0.5, -1.0, 2.0], np.float32),
    "layers": {"w": RNG.standard_normal((LAYERS, WIDTH)).astype(np.float32)},
    "leave": np.array([1.0, 3.0, -0.5], np.float32),
}


def written_out(tree) -> jax.Array:
    """Computes the loss without a stack."""
    x, sizes = BATCH["x"] * tree["enter"], 0.0
    for n in range(LAYERS):
        x = jnp.tanh(x * tree["layers"]["w"][n] + BATCH["shift"] * tree["enter"])
        sizes += jnp.sum(x**2)
    error = jnp.sum((x * tree["leave"] - BATCH["y"]) ** 2, -1)
    return jnp.sum(BATCH["weights"] * error) + 0.1 * sizes


def entered_with_rows(field: str):
    def enter_(p, batch, **options) -> Entry:
        entry = enter(p, batch, **options)
        x, keys = batch["x"].sum(), entry.xs
        return entry._replace(**({"whole": (x,)} if field == "whole" else {"xs": (keys, jnp.full(LAYERS, x))}))

    return enter_


@pytest.mark.parametrize("field", ["xs", "whole"])
def test_what_layers_take_whole_may_not_come_from_the_rows_of_one_microbatch(field):
    model = Model(Chain().make().spec, Parts(entered_with_rows(field), block, leave))
    with pytest.raises(ValueError, match=r"depends on the rows of the batch; put such values into Entry\.shared"):
        of_schedule("1f1b", model)


SHAPES = {
    "gpipe": {"stage": 2, "pipeline_microbatches": 4},
    "1f1b": {"stage": 2, "pipeline_microbatches": 4, "pipeline_schedule": "1f1b"},
    "1f1b, two rounds": {"stage": 2, "pipeline_microbatches": 8, "pipeline_rounds": 2, "pipeline_schedule": "1f1b"},
    "1f1b, computed again": {
        "stage": 4, "pipeline_microbatches": 8, "pipeline_rounds": 2, "pipeline_schedule": "1f1b", "pipeline_remat": True
    },
}  # fmt: skip


def of_schedule(case: str, model: Model):
    """(gradients, loss, metrics, ...) and how the batch was cut."""
    parallel = ParallelConfig(data=1, **SHAPES[case])
    config = Config(Chain(), Squares(), DataConfig(), parallel=parallel, train=TrainConfig(batch_size=ROWS))
    mesh = sharding.make_mesh(parallel, jax.devices()[: parallel.stage])

    @jax.jit
    def run(tree, batch):
        with sharding.use(mesh, parallel.rules, parallel):
            return accumulate(config, model, tree, {}, batch, jax.random.key(1))

    return run(TREE, BATCH), parallel


@pytest.mark.few("1f1b, two rounds")
@pytest.mark.slow
@pytest.mark.parametrize("case", SHAPES)
def test_gradients_and_keys_of_a_schedule(case):
    (grads, mean, sums, _), parallel = of_schedule(case, Chain().make())
    loss, want = jax.value_and_grad(written_out)(TREE)
    assert float(mean.total) == pytest.approx(float(loss), rel=1e-5)
    assert float(mean.count) == BATCH["weights"].sum()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), grads, want)
    draws = np.asarray(sums["draws"].total)
    assert draws.shape == (LAYERS, ROWS)
    assert ((draws > 0).sum(1) == parallel.pipeline_microbatches).all()
    assert len(set(draws[draws > 0].tolist())) == LAYERS * parallel.pipeline_microbatches
    outside = np.asarray(sums["outside"].total)
    assert len(set(outside[outside > 0].tolist())) == (1 if case == "gpipe" else parallel.pipeline_microbatches)
