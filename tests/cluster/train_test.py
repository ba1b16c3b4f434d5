"""The same run in one process and in several: losses, batches, files, and checkpoints that any
layout reads."""

import dataclasses
import hashlib
import json

import chex
import jax
import numpy as np
import pytest

import jobs
import runs
from bigmodel_jax import config_file
from bigmodel_jax.checkpoint import store
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data.loader import Sampler
from bigmodel_jax.training.state import abstract_state

pytestmark = pytest.mark.slow

# Beside the config: data that notes which rows each process reads, and what is in them.
COUNTED = """
import dataclasses, hashlib, json, jax
from bigmodel_jax.data.base import Rows

class Noted:
    def __init__(self, rows, path):
        self.rows, self.path = rows, path

    def __len__(self):
        return len(self.rows)

    def batch(self, indices, noise):
        batch = self.rows.batch(indices, noise)
        sha = [hashlib.sha256(b"".join(v[i].tobytes() for v in batch.values())).hexdigest() for i in range(len(indices))]
        with open(self.path, "a") as file:
            file.write(json.dumps(sha) + "\\n")
        return batch

@dataclasses.dataclass(frozen=True)
class CountedText(TextData):
    notes: str = ""

    def open(self, split):
        return Noted(super().open(split), f"{self.notes}/{split}_{jax.process_index()}of{jax.process_count()}.jsonl")
"""
STEPS, ROWS = 12, 8
SHORT = ("--eval.baselines", "False", "--eval.sample.max_tokens", "1")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The tiny decoder's config file, reading data that notes what is read."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "notes").mkdir()
    path = runs.write(folder)
    text = path.read_text().replace("data=TextData(", f"data=CountedText(notes={str(folder / 'notes')!r}, ")
    path.write_text(text.replace("\ndef get_config", f"{COUNTED}\ndef get_config"))
    return path


@pytest.fixture(scope="module")
def alone(path):
    """The folder of the run in one process with one device."""
    done = runs.launch("train", path, "--run_dir", path.parent / "alone", *SHORT)
    assert done.returncode == 0, done.stderr
    return path.parent / "alone"


@pytest.fixture(scope="module")
def four(path):
    """(folder, job) of the run in four processes with two devices each."""
    folder = path.parent / "four"
    options = ("--parallel.fsdp", "4", "--train.profile", "6:8", *SHORT)
    with jobs.job(4, "train", path, "--run_dir", folder, *options, devices=2) as job:
        assert job.wait() == [0] * 4, job.everything()
        yield folder, job


@pytest.fixture(scope="module")
def two(path):
    """The folder of the run in two processes with four devices each."""
    folder = path.parent / "two"
    with jobs.job(2, "train", path, "--run_dir", folder, "--parallel.tensor", "2", *SHORT, devices=4) as job:
        assert job.wait() == [0, 0], job.everything()
    return folder


def check_losses(run_dir, alone):
    """Sums in float32 have another order, so the tolerance is that of the layouts' tests, grown
    over 12 steps."""
    got, want = runs.losses(run_dir), runs.losses(alone)
    assert sorted(got) == sorted(want) == list(range(1, STEPS + 1))
    np.testing.assert_allclose([got[s] for s in want], [want[s] for s in want], rtol=1e-5)
    last = [json.loads((d / "metrics.jsonl").read_text().splitlines()[-1])["eval/loss"] for d in (run_dir, alone)]
    np.testing.assert_allclose(*last, rtol=1e-5)


def test_four_processes_train_as_one_and_the_first_alone_writes(alone, four):
    run_dir, job = four
    check_losses(run_dir, alone)
    assert "step 12" in job.out(0)
    assert "Report: " in job.out(0)
    assert "[Gloo]" not in job.out(0)
    assert [job.out(i) + job.err(i) for i in (1, 2, 3)] == ["", "", ""]
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == list(range(1, STEPS + 1)), "each step is written once"
    assert json.loads((run_dir / "environment.json").read_text())["process_count"] == 4
    assert len(list((run_dir / "tensorboard").iterdir())) == 1
    profile = {"profile", "profile.html", "profile.json"}
    assert {p.name for p in run_dir.iterdir()} == {p.name for p in alone.iterdir()} | profile
    log = (run_dir / "log.txt").read_text()
    assert log.count("step 12 saved") == log.count("state made") == 1
    assert (run_dir / "samples" / "00000012.txt").read_text().startswith("the ")


def test_the_profile_of_a_job_is_one_trace_of_the_first_process_and_says_so(four):
    run_dir, job = four
    assert len(list((run_dir / "profile").glob("**/*.xplane.pb"))) == 1
    record = json.loads((run_dir / "profile.json").read_text())
    assert (record["window"], record["steps"], record["processes"], record["devices"]) == ("6:8", 2, 4, 8)
    seconds = sum(kind["seconds"] for kind in record["kinds"])
    assert seconds == pytest.approx(record["step_seconds"], rel=1e-6)
    assert "of 8, of process 0 of 4" in (run_dir / "profile.html").read_text()
    assert str(run_dir / "profile.html") in job.out(0).replace("\n", "")


@pytest.mark.exhaustive
def test_two_processes_of_four_devices_with_tensor_parallelism(alone, two):
    check_losses(two, alone)


def notes(path, split, process, count):
    lines = (path.parent / "notes" / f"{split}_{process}of{count}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.exhaustive
def test_each_process_reads_its_share_and_the_global_batches_are_the_same(path, alone, two, four):
    """The test compares hashes: the shares of 2 and of 4 processes, put together, are the batches
    of one process."""
    config = config_file.load(path)
    sampler = Sampler(config.data.open("train"), ROWS, config.train.seed)
    want = []
    for number in range(STEPS):
        batch = sampler.local(number)
        want.append([hashlib.sha256(b"".join(v[i].tobytes() for v in batch.values())).hexdigest() for i in range(ROWS)])
    for count in (1, 2, 4):
        shares = [notes(path, "train", process, count) for process in range(count)]
        # The first batch is read twice: once for its shapes, before the step is compiled; others
        # may be read ahead of it.
        begins = [share.index(share[0], 1) for share in shares]
        for number in range(STEPS):
            together = [sha for share, begin in zip(shares, begins, strict=True) for sha in share[begin + number]]
            assert together == want[number], (count, number)
        assert {len(rows) for share in shares for rows in share} == {ROWS // count}
        validation = [len(rows) for p in range(count) for rows in notes(path, "validation", p, count)]
        assert set(validation) == {ROWS // count}


def test_a_checkpoint_of_four_processes_is_read_in_every_layout(path, four):
    """One process reads it on one, two and eight devices, and finds all values."""
    run_dir, found = four[0], []
    for devices, parallel in (
        (1, ParallelConfig()),
        (2, ParallelConfig(fsdp=2)),
        (8, ParallelConfig(fsdp=4, tensor=2)),
    ):
        config = dataclasses.replace(config_file.load(path), parallel=parallel)
        mesh = sharding.make_mesh(parallel, jax.devices()[:devices])
        with store.open_store(run_dir / "checkpoints", config.checkpoint) as saves:
            restored = store.restore(saves, abstract_state(config, mesh))
        assert (restored.step, restored.data_state) == (STEPS, {"next_batch": STEPS})
        found.append(jax.tree.map(np.asarray, restored.state))
    chex.assert_trees_all_equal(found[0], found[1])
    chex.assert_trees_all_equal(found[0], found[2])


def test_two_processes_evaluate_what_four_have_saved(four):
    run_dir, _ = four
    with jobs.job(2, "eval", run_dir, "--trust", "--parallel.fsdp", "2", devices=1) as job:
        assert job.wait() == [0, 0], job.everything()
    record = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"{record['eval/loss']:.5g}" in job.out(0)
    assert job.out(1) + job.err(1) == ""
