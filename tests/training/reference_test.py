"""The reference of preference training: computed once, kept, the same from all three of its sources
and on every mesh."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from grids import few
from rich.console import Console

from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, TrainConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import PreferenceData, TableFiles, UnpairedPreferenceData
from bigmodel_jax.data.loader import make_iterator
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.models.adapters import Lora
from bigmodel_jax.objectives import DPO, KTO
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.plan.worker import abstract_batch
from bigmodel_jax.report.stages import Stages
from bigmodel_jax.training import reference
from bigmodel_jax.training.evaluate_saved import evaluate_run
from bigmodel_jax.training.run import train
from bigmodel_jax.training.state import init_constants, init_state
from bigmodel_jax.training.step import make_train_step
from runs import killed

FILES = Path(__file__).parents[1] / "parity" / "fixtures" / "preference"
MODEL = dataclasses.replace(LlamaConfig.tiny(), num_layers=1, embed_dim=16, mlp_dim=24, vocab_size=32)
QUIET = Console(file=io.StringIO(), width=200)


def config_of(folder: Path, objective=None, kind=PreferenceData, **train) -> Config:
    rng = np.random.default_rng(0)

    def word() -> str:
        return "".join(rng.choice(list("abcdefgh"), rng.integers(1, 8)))

    for name, num in (("train", 11), ("validation", 5)):
        lines = [json.dumps({"prompt": word(), "chosen": word() + "x", "rejected": word() + "y"}) for _ in range(num)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    data = kind(
        source=TableFiles(str(folder / "train.jsonl"), str(folder / "validation.jsonl")),
        tokenizer_path=str(FILES / "tokenizer.json"),
        seq_len=24,
        cache_dir=str(folder / "cache"),
    )
    return Config(
        MODEL,
        objective or DPO(),
        data,
        OptimConfig(lr=3e-2, schedule="constant"),
        train=TrainConfig(**({"steps": 4, "batch_size": 8, "log_every": 1} | train)),
        eval=EvalConfig(every=2, batch_size=8),
        checkpoint=CheckpointConfig(every=2),
    )


def run(config: Config, folder: Path) -> list[dict]:
    """The records of its steps, after `train`."""
    train(config, folder, Stages(QUIET))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def losses(records: list[dict]) -> list[float]:
    return [record["loss"] for record in records]


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "cache").glob("reference-1/*/reference.npy"))


def find(config: Config, folder: Path, **given):
    return reference.find(config, sharding.make_mesh(config.parallel), folder, **({"resumes": False} | given))


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """(config, folder) of a run that has its reference, and nothing else."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "run").mkdir()
    config = config_of(folder)
    reference.keep(folder / "run", find(config, folder))
    return config, folder


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(config, folder, records) of a run of four steps."""
    folder = tmp_path_factory.mktemp("done")
    config = config_of(folder)
    return config, folder, run(config, folder / "run")


@pytest.mark.slow
def test_a_run_begins_where_its_reference_stands_and_keeps_it(done):
    _, folder, records = done
    assert records[0]["loss"] == pytest.approx(np.log(2), rel=1e-6), "the model is its reference before the first step"
    assert records[0]["reward_margin"] == pytest.approx(0.0, abs=1e-5)
    assert records[-1]["loss"] < np.log(2) - 0.01
    assert len(kept(folder)) == 2, "one file a split"
    assert "The reference reads 11 rows of the train split, once." in QUIET.file.getvalue()


@pytest.mark.exhaustive
def test_every_row_of_both_splits_has_a_value(begun):
    config, folder = begun
    values = find(config, folder).data.values
    assert {split: x["reference"].shape for split, x in values.items()} == {"train": (11, 2), "validation": (5, 2)}
    assert (values["train"]["reference"] < -1).all()


@pytest.mark.slow
def test_each_row_has_its_own_value(begun):
    config, folder = begun
    rows = find(config, folder).data.open("train")
    backwards = np.arange(len(rows))[::-1]
    np.testing.assert_array_equal(
        rows.batch(backwards, None)["reference"], rows.batch(np.arange(len(rows)), None)["reference"][::-1]
    )
    assert len(rows) == 11
    assert rows.counts()["rows of two texts"] == 11


@pytest.mark.slow
def test_a_resumed_run_computes_nothing_and_goes_on_as_if_it_had_not_stopped(done, tmp_path, monkeypatch):
    config, folder, records = done
    killed(folder / "run", 4, tmp_path / "run")
    monkeypatch.setattr(reference, "_compute", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr(reference, "fresh_state", lambda *_: pytest.fail("weights read again"))
    assert losses(run(config, tmp_path / "run"))[2:] == pytest.approx(losses(records)[2:], rel=1e-6)
    step, scalars = evaluate_run(config, tmp_path / "run")
    assert step == 4
    assert 0 <= scalars["eval/preference_accuracy"] <= 1


@pytest.mark.slow
def test_a_reference_that_is_gone_is_computed_again_or_refused(begun, tmp_path):
    config, folder = begun
    own = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_dir=str(tmp_path / "other")))
    again = find(own, folder / "run", resumes=True).data.values["train"]["reference"]
    np.testing.assert_array_equal(again, find(config, folder).data.values["train"]["reference"])
    shutil.rmtree(tmp_path / "other" / "reference-1")
    changed = dataclasses.replace(own, train=dataclasses.replace(own.train, seed=7))
    with pytest.raises(ValueError, match="the reference's weights are no longer those with which this run began"):
        find(changed, folder / "run", resumes=True)


@pytest.mark.slow
def test_what_is_cut_short_leaves_nothing(begun, tmp_path, monkeypatch):
    config, _ = begun
    own = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_dir=str(tmp_path)))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sharding, "to_host", stop)
    with pytest.raises(KeyboardInterrupt):
        find(own, tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("reference-*/*"))
    assert find(own, tmp_path).data.values["train"]["reference"].shape == (11, 2)


@pytest.mark.slow
def test_other_rows_other_weights_and_another_precision_have_other_values(begun, tmp_path):
    config, folder = begun
    before = {path.parent.name for path in kept(folder)}
    replace = dataclasses.replace
    for other in (
        replace(config, train=replace(config.train, seed=7)),
        replace(config, data=replace(config.data, seq_len=20)),
        replace(config, precision=replace(config.precision, compute="bfloat16")),
    ):
        find(other, folder, splits=("train",))
        after = {path.parent.name for path in kept(folder)}
        assert len(after) == len(before) + 1
        before = after


@pytest.mark.exhaustive
def test_constants_give_the_same_losses(done, tmp_path):
    """The run starts at another run's weights, which are also its reference."""
    config, folder, _ = done
    begins = dataclasses.replace(config.train, init_from=f"{folder}/run@4")
    cached = dataclasses.replace(config, train=begins)
    constants = dataclasses.replace(cached, objective=DPO(reference="constants", reference_run=f"{folder}/run@4"))
    named = dataclasses.replace(cached, objective=DPO(reference_run=f"{folder}/run@4"))
    ours, theirs, third = (run(c, tmp_path / name) for c, name in ((cached, "a"), (constants, "b"), (named, "c")))
    np.testing.assert_allclose(losses(theirs), losses(ours), rtol=1e-6)
    np.testing.assert_allclose(losses(third), losses(ours), rtol=1e-6)
    assert losses(ours)[-1] < losses(ours)[0]
    assert not (tmp_path / "b" / "reference.json").exists()


@pytest.mark.exhaustive
def test_single_answers_train_too(tmp_path):
    config = config_of(tmp_path, KTO(), UnpairedPreferenceData, steps=8)
    records = run(config, tmp_path / "run")
    assert records[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert records[-1]["loss"] < 0.5 - 0.003, "half of each weight before the first step"
    assert {"kl", "chosen_reward", "rejected_reward"} <= records[0].keys()


LAYOUTS = {
    "data": ParallelConfig(data=8),
    "fsdp": ParallelConfig(data=1, fsdp=8),
    "fsdp-tensor": ParallelConfig(data=1, fsdp=4, tensor=2),
}
each_layout = pytest.mark.parametrize(
    "layout", few(LAYOUTS, *(n for n in LAYOUTS if "tensor" in n), marks=pytest.mark.slow)
)


@each_layout
def test_eight_devices_are_one(layout, tmp_path):
    config = config_of(tmp_path)
    alone = sharding.make_mesh(ParallelConfig(data=1), jax.devices()[:1])
    one = np.array(reference.find(config, alone, tmp_path, resumes=False).data.values["train"]["reference"])
    shutil.rmtree(tmp_path / "cache" / "reference-1")
    config = dataclasses.replace(config, parallel=LAYOUTS[layout])
    many = find(config, tmp_path).data.values["train"]["reference"]
    np.testing.assert_allclose(many, one, rtol=1e-6)


# --------------------------------------------------------------------------------------- three ways


@pytest.mark.exhaustive
@each_layout
def test_three_ways_to_a_reference_give_one_loss(layout, tmp_path):
    """The run's adapters have moved, so its reference is their base."""
    plain = dataclasses.replace(config_of(tmp_path), adapters=Lora(rank=2), parallel=LAYOUTS[layout])
    mesh = sharding.make_mesh(plain.parallel)
    rows = find(plain, tmp_path).data.open("train")
    where = {"reference": (), **dict.fromkeys(plain.data.row(), (None, "seq"))}
    batch = {
        name: jax.device_put(x, sharding.batch_sharding(mesh, plain.parallel.rules, where[name]))
        for name, x in rows.batch(np.arange(8), None).items()
    }
    found = {}
    for way in ("cached", "adapters_off", "constants"):
        objective = DPO(reference=way, reference_run="another" if way == "constants" else "")
        config = dataclasses.replace(plain, objective=objective)
        state, fixed = init_state(config, mesh), init_constants(config, mesh)
        if way == "constants":
            fixed["reference"] = {name: fixed[name] for name in fixed["reference"]}
        moved = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), state.params)
        state = state.replace(params=jax.device_put(moved, jax.tree.map(lambda x: x.sharding, state.params)))
        given = {name: x for name, x in batch.items() if way == "cached" or name != "reference"}
        state, sums = make_train_step(config, mesh)(state, given, fixed)
        found[way] = (float(sums["loss"].compute()), float(sums["grad_norm"].compute()))
    assert found["cached"][0] != pytest.approx(np.log(2), rel=1e-3), "the model has left its reference"
    assert found["cached"][1] > 1e-3
    for way in ("adapters_off", "constants"):
        np.testing.assert_allclose(found[way], found["cached"], rtol=1e-6, err_msg=way)


@pytest.mark.slow
def test_a_plan_knows_what_is_computed(begun):
    config, _ = begun
    mesh = sharding.make_mesh(config.parallel)
    planned = abstract_batch(config, mesh)
    batch = next(make_iterator(reference.blank(config), batch_size=8, seed=0, mesh=mesh))
    assert {name: (x.shape, x.dtype) for name, x in planned.items()} == {
        n: (x.shape, x.dtype) for n, x in batch.items()
    }
    assert planned["reference"].shape == (8, 2)
