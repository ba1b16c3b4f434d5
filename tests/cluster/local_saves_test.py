"""A process dies together with its host's disk; the job goes on from the others' copies, bit for
bit."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest

import jobs
import runs
from bigmodel_jax import config_file
from bigmodel_jax.checkpoint import store
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.training.state import abstract_state

# It takes four processes 155 CPU seconds.
pytestmark = pytest.mark.exhaustive

PROCESSES, EVERY, STEPS, VICTIM = 4, 4, 14, 2
# Beside the config: data that kills the process which reads it, at a batch between the saves of
# steps 8 and 12, once the save of step 8 is whole. One batch is read twice, and one or two are read
# ahead.
DEADLY = """
import dataclasses, os, pathlib, signal, time, jax

class Deadly:
    def __init__(self, rows, notes):
        self.rows, self.notes, self.count = rows, pathlib.Path(notes), 0

    def __len__(self):
        return len(self.rows)

    def batch(self, indices, noise):
        self.count += 1
        victim = self.notes / f"kill_{jax.process_index()}"
        if self.count == 12 and victim.exists():
            log = self.notes / "run" / "log.txt"
            while "step 8 saved locally" not in log.read_text():
                time.sleep(0.05)
            victim.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.rows.batch(indices, noise)

@dataclasses.dataclass(frozen=True)
class DeadlyText(TextData):
    notes: str = ""

    def open(self, split):
        rows = super().open(split)
        return Deadly(rows, self.notes) if split == "train" else rows
"""


def disks(folder):
    """Each process has a home of its own, and there the disk of its host."""
    return [{"HOME": str(folder / f"host{i}")} for i in range(PROCESSES)]


def write(folder):
    """The config file, whose data notes and deaths are in `folder`."""
    path = runs.write(folder)
    text = path.read_text().replace("data=TextData(", f"data=DeadlyText(notes={str(folder)!r}, ")
    path.write_text(text.replace("\ndef get_config", f"{DEADLY}\ndef get_config"))
    for environment in disks(folder):
        (folder / environment["HOME"]).mkdir()
    return path


def start(path, run_dir, *more):
    args = ("train", path, "--run_dir", run_dir, "--train.steps", str(STEPS), "--checkpoint.every", "0")
    local = ("--checkpoint.local_dir", "~/disk", "--checkpoint.local_every", str(EVERY))
    return jobs.job(PROCESSES, *args, *local, *more, devices=1, environments=disks(path.parent))


def final(path, run_dir, parallel):
    config = config_file.load(path)
    mesh = sharding.make_mesh(parallel, jax.devices()[:PROCESSES])
    with store.open_store(run_dir / "checkpoints", config.checkpoint) as saves:
        return store.restore(saves, abstract_state(config, mesh)).state


def test_one_of_four_dies_with_its_disk_and_at_most_one_interval_is_lost(tmp_path):
    """Arrays cut over all hosts come from the copy. Arrays that every process has come from another
    process."""
    path, run_dir = write(tmp_path), tmp_path / "run"
    layout = ("--parallel.fsdp", str(PROCESSES))
    with start(path, tmp_path / "whole", *layout) as job:
        assert job.wait() == [0] * PROCESSES, job.everything()
    (tmp_path / f"kill_{VICTIM}").touch()
    with start(path, run_dir, *layout) as job:
        codes = job.wait()
        assert codes == [-signal.SIGKILL if i == VICTIM else 75 for i in range(PROCESSES)], job.everything()
    assert not any((run_dir / "checkpoints").iterdir()), "nothing is on the shared disk"
    done = max(runs.losses(run_dir))
    shutil.rmtree(tmp_path / f"host{VICTIM}" / "disk")

    with start(path, run_dir, *layout) as job:
        assert job.wait() == [0] * PROCESSES, job.everything()
        assert "Resuming at step 8." in job.out(0)
        assert 0 <= done - 8 < EVERY
    steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    assert runs.losses(run_dir) == runs.losses(tmp_path / "whole")
    found, want = (final(path, run, ParallelConfig(fsdp=PROCESSES)) for run in (run_dir, tmp_path / "whole"))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    for environment in disks(tmp_path):
        assert not list((tmp_path / environment["HOME"]).glob("disk/*")), "the shared save made the local ones useless"
