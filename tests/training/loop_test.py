"""Whole runs of a second each, in this process: which batches they see, what they log, save and
continue with."""

import dataclasses
import io
import json
import math
import os
import shutil
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, ReportConfig, TrainConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import ImageData
from bigmodel_jax.data.loader import Sampler, make_iterator
from bigmodel_jax.data.sources.sources import Arrays
from bigmodel_jax.models import MLPConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.report import page
from bigmodel_jax.report.stages import Stages
from bigmodel_jax.training import loop
from bigmodel_jax.training.ending import check_endings
from bigmodel_jax.training.fresh import fresh_state
from bigmodel_jax.training.run import train
from bigmodel_jax.training.saved import load_weights
from bigmodel_jax.training.signals import Interrupted
from bigmodel_jax.training.state import abstract_state


def make_arrays():
    rng = np.random.default_rng(0)
    split = lambda n: {"image": rng.integers(0, 256, (n, 8, 8, 1), np.uint8), "label": np.arange(n) % 10}  # noqa: E731
    return {"train": split(37), "validation": split(21)}


def config_of(folder) -> Config:
    return Config(
        dataclasses.replace(MLPConfig.tiny(), dropout=0.2),
        Classification(),
        ImageData(cache_dir=str(folder / "cache"), source=Arrays(f"{__name__}:make_arrays"), max_shift=1),
        optim=OptimConfig(lr=1e-2, warmup_steps=2, schedule="constant", ema_decay=0.5),
        parallel=ParallelConfig(data=8),
        train=TrainConfig(steps=6, batch_size=8, log_every=2),
        eval=EvalConfig(every=4),
        checkpoint=CheckpointConfig(every=3, keep=10),
        report=ReportConfig(tensorboard=False),
    )


def run(config, run_dir, accept=()) -> tuple[str, list[int]]:
    """(what was said, the numbers of the training batches that were made); neither a page nor a
    peak is made."""
    said, numbers, local = io.StringIO(), [], Sampler.local
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Sampler, "local", lambda self, number, *part: numbers.append(number) or local(self, number, *part)
        )
        patch.setattr(page, "build_report", lambda folders, path: path.write_text("") and path)
        patch.setattr(loop, "peak_flops", lambda devices, dtype: (1e12, "a guess"))
        train(config, run_dir, Stages(Console(file=said, width=200)), accept=accept)
    return said.getvalue(), numbers


def records(run_dir) -> dict[int, dict]:
    found = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        found.setdefault(record["step"], {}).update(record)
    return found


def same(config, a, b) -> None:
    mesh = sharding.make_mesh(ParallelConfig(), jax.devices()[:1])
    (one, step), (other, step_too) = (load_weights(config, folder, mesh) for folder in (a, b))
    assert step == step_too
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(config, folder, what was said, batches) of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    config = config_of(folder)
    return config, folder / "run", *run(config, folder / "run")


def test_a_run_sees_its_batches_once_and_writes_what_is_due(whole):
    _, folder, said, numbers = whole
    assert numbers[0] == 0, "the one that the step is compiled for"
    assert numbers[1:] == [0, 1, 2, 3, 4, 5, 6], "and one that was prepared in vain"
    found = records(folder)
    assert [step for step, r in found.items() if "loss" in r] == [2, 4, 6]
    assert [step for step, r in found.items() if "eval/loss" in r] == [4, 6]
    assert sorted(int(p.name) for p in (folder / "checkpoints").iterdir()) == [3, 6]
    assert all(r["skipped_steps"] == 0 for r in found.values() if "loss" in r)
    assert np.sum(found[6]["eval/confusion"]) == 21
    assert "6 steps in" in said
    assert (folder / "report.html").is_file()


def test_a_run_that_is_longer_goes_on_with_the_next_batch(whole, tmp_path):
    """Three steps and three more equal six, bit for bit, in state, averages, order, noise and
    keys."""
    config, folder, _, _ = whole
    run(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3)), tmp_path)
    said, numbers = run(config, tmp_path)
    assert "Resuming at step 3" in said
    assert numbers[:4] == [3, 3, 4, 5]
    same(config, folder, tmp_path)
    assert records(folder)[6]["loss"] == records(tmp_path)[6]["loss"]
    said, numbers = run(config, tmp_path)
    assert "is complete: 6 of 6 steps are done" in said
    assert numbers == []
    with pytest.raises(ValueError, match=r"train\.steps = 5 is below step 6"):
        run(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=5)), tmp_path)


class Norm:
    """A user's ending, which reports the length of the weights."""

    def check(self, config):
        if config.train.seed == 13:
            raise ValueError("train.seed = 13: no")

    def make(self, config, weights, path):
        length = sum(float(jnp.vdot(x, x)) for x in jax.tree.leaves(weights))
        path.with_suffix(".txt").write_text(str(length))
        return f"The weights are {length:.3f} long."


@dataclasses.dataclass(frozen=True)
class Measured(Classification):
    endings = (Norm(),)


def test_what_a_run_makes_at_its_end_is_its_objectives(whole, tmp_path):
    config = dataclasses.replace(whole[0], objective=Measured())
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
    said, _ = run(config, tmp_path / "run")
    length = float((tmp_path / "run" / "samples" / "00000002.txt").read_text())
    assert f"The weights are {length:.3f} long." in said
    with pytest.raises(ValueError, match=r"train\.seed = 13: no"):
        run(dataclasses.replace(config, train=dataclasses.replace(config.train, seed=13)), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_an_ending_that_there_is_not_is_refused(whole):
    class Odd(Classification):
        endings = ("texts",)

    with pytest.raises(ValueError, match=r"'texts' is unknown \(perhaps you meant 'text'\); known: text, images"):
        check_endings(dataclasses.replace(whole[0], objective=Odd()))


class Told:
    """Data whose batches are as bright as the weights, and whose position is more than a number."""

    def __init__(self, rows_in_order):
        self.inner, self.rows, self.brightness = rows_in_order, rows_in_order.rows, 0.0

    def next(self, state):
        weights = sum(float(x.sum()) for x in jax.tree.leaves(state.params))
        self.brightness = 0.5 * self.brightness + math.tanh(weights)
        batch = self.inner.next(state)
        return batch | {"image": batch["image"] * np.float32(1 + self.brightness)}

    def enter(self, run_dir, constants):
        assert run_dir.is_dir()

    def measured(self):
        return {"brightness": Mean(np.float32(self.brightness), np.float32(1))}

    def prefetch(self):
        self.inner.prefetch()

    def wait(self, seconds):
        return self.inner.wait(seconds)

    def position(self):
        return {"rows": self.inner.position(), "brightness": self.brightness}

    def seek(self, step, position=None):
        self.inner.seek(step, position and position["rows"])
        self.brightness = position["brightness"] if position else 0.0


@dataclasses.dataclass(frozen=True)
class ToldData(ImageData):
    def experience(self, config, mesh):
        return Told(make_iterator(self, batch_size=config.train.batch_size, seed=config.train.seed, mesh=mesh))


@pytest.mark.slow
def test_a_run_may_make_its_batches_from_its_state(whole, tmp_path):
    """The maker of batches goes on where the checkpoint says it stood, bit for bit."""
    config, _, _, _ = whole
    fields = {field.name: getattr(config.data, field.name) for field in dataclasses.fields(ImageData)}
    config = dataclasses.replace(config, data=ToldData(**fields))
    run(config, tmp_path / "at_once")
    run(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3)), tmp_path / "in_two")
    with store.open_store(tmp_path / "in_two" / "checkpoints", config.checkpoint) as saves:
        position = store.restore(saves, abstract_state(config, sharding.make_mesh(config.parallel))).data_state
    assert position["rows"] == {"next_batch": 3}
    assert abs(position["brightness"]) > 0.01
    said, _ = run(config, tmp_path / "in_two")
    assert "Resuming at step 3" in said
    same(config, tmp_path / "at_once", tmp_path / "in_two")
    assert records(tmp_path / "at_once")[6]["loss"] == records(tmp_path / "in_two")[6]["loss"]
    assert records(tmp_path / "at_once")[6]["loss"] != records(whole[1])[6]["loss"]
    assert records(tmp_path / "at_once")[6]["brightness"] == records(tmp_path / "in_two")[6]["brightness"] != 0


@pytest.mark.slow
def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(whole, tmp_path):
    """The start renames the damaged save, so the newest step changes. It does not take this for the
    work of another process."""
    config, folder, _, _ = whole
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "6" / "params" / "manifest.ocdbt").unlink()
    said, _ = run(config, tmp_path)
    assert "Resuming at step 3" in said
    same(config, folder, tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "6", "6.damaged"]


def test_a_run_that_starts_from_another_ones_weights_averages_from_there(whole):
    config, folder, _, _ = whole
    mesh = sharding.make_mesh(config.parallel)
    state, _, missing, *_ = fresh_state(
        dataclasses.replace(config, train=TrainConfig(init_from=str(folder), seed=7)), mesh
    )
    assert missing == []
    assert int(state.step) == 0
    there, _ = load_weights(config, folder, mesh)
    for tree in (state.params, state.ema):
        jax.tree.map(np.testing.assert_array_equal, tree, there)
    averages = {id(x) for x in jax.tree.leaves(state.ema)}
    assert not averages & {id(x) for x in jax.tree.leaves(state.params)}, "one buffer cannot be donated twice"


@pytest.mark.slow
def test_a_second_sigterm_while_it_saves_is_no_second_end(whole, tmp_path, monkeypatch):
    """The first signal comes in step 2. Two more come while its save is written. The run can be
    resumed from that save."""
    config, folder, _, _ = whole
    record, save = loop.Run.record, store.save

    def recorded(self, step, *rest):
        record(self, step, *rest)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def saved(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        save(*args, **options)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Run, "record", recorded)
    monkeypatch.setattr(store, "save", saved)
    with pytest.raises(Interrupted) as interrupted:
        run(config, tmp_path)
    assert (interrupted.value.step, interrupted.value.signal_number) == (2, signal.SIGTERM)
    monkeypatch.undo()
    said, numbers = run(config, tmp_path)
    assert "Resuming at step 2" in said
    assert numbers[1:5] == [2, 3, 4, 5]
    same(config, folder, tmp_path)


@pytest.mark.slow
def test_a_run_is_continued_only_with_the_data_that_it_had_unless_others_are_accepted(tmp_path, monkeypatch):
    config = dataclasses.replace(config_of(tmp_path), checkpoint=CheckpointConfig(every=3))
    run(config, tmp_path / "run")
    other = {name: {"image": x["image"] + 1, "label": x["label"]} for name, x in make_arrays().items()}
    monkeypatch.setitem(globals(), "make_arrays", lambda: other)
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=8))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"holds a run of other data: data\.source\.train: other content"):
        run(longer, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    run(longer, tmp_path / "run", accept=("data",))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "accepted: data: data.source.train: other content (" in log
    assert max(records(tmp_path / "run")) == 8
    run(dataclasses.replace(longer, train=dataclasses.replace(longer.train, steps=9)), tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_dies_goes_on_from_its_local_save(whole, tmp_path, monkeypatch):
    """When the run dies at step 5, the shared disk holds nothing. At the end of the resumed run,
    the local disk holds nothing."""
    config, folder, _, _ = whole
    local = CheckpointConfig(every=0, local_dir=str(tmp_path / "disk"), local_every=2)
    config = dataclasses.replace(config, checkpoint=local, eval=EvalConfig(every=5))

    def die(*_):
        for thread in threading.enumerate():
            if thread.name == "local save":
                thread.join()
        raise KeyError("a bug")

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(loop, "evaluate", die)
        run(config, tmp_path / "run")
    assert not any((tmp_path / "run" / "checkpoints").iterdir())
    said, numbers = run(config, tmp_path / "run")
    assert "Resuming at step 4" in said
    assert numbers[:3] == [4, 4, 5]
    same(config, folder, tmp_path / "run")
    assert records(folder)[6]["loss"] == records(tmp_path / "run")[6]["loss"]
    assert sorted(records(tmp_path / "run")) == [2, 4, 5, 6]
    assert not any((tmp_path / "disk").iterdir())


@pytest.mark.slow
def test_a_run_whose_local_save_is_damaged_begins_anew(whole, tmp_path, caplog):
    config, folder, _, _ = whole
    local = CheckpointConfig(every=0, local_dir=str(tmp_path / "disk"), local_every=2)
    config = dataclasses.replace(config, checkpoint=local)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(store, "save", lambda *_, **__: {}["a bug"])
        run(config, tmp_path / "run")
    for thread in threading.enumerate():
        if thread.name == "local save":
            thread.join()
    for path in tmp_path.glob("disk/*/*/*/own_0.data"):
        path.write_bytes(bytes(path.stat().st_size))
    said, _ = run(config, tmp_path / "run")
    assert "Resuming" not in said
    assert "the run starts again from its beginning" in (tmp_path / "run" / "log.txt").read_text()
    same(config, folder, tmp_path / "run")
