"""Several processes train LoRA adapters beside a base in another run; one dies, and local saves
bring the job back."""

import signal

import jax
import numpy as np
import pytest

import jobs
import runs
from bigmodel_jax import config_file
from bigmodel_jax.core import sharding
from bigmodel_jax.training.saved import load_weights

pytestmark = pytest.mark.slow

PROCESSES = 2
DEADLY = """
import dataclasses, os, pathlib, signal, time, jax

class Deadly:
    def __init__(self, rows, notes):
        self.rows, self.notes, self.count = rows, pathlib.Path(notes), 0

    def __len__(self):
        return len(self.rows)

    def batch(self, indices, noise):
        self.count += 1
        if self.count == 8 and (victim := self.notes / f"kill_{jax.process_index()}").exists():
            while "step 4 saved locally" not in (self.notes / "run" / "log.txt").read_text():
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


def start(path, run_dir):
    """Each process has a home, and with it a disk, of its own."""
    homes = [{"HOME": str(path.parent / f"host{i}")} for i in range(PROCESSES)]
    local = ("--checkpoint.local_dir", "~/disk", "--checkpoint.local_every", "4", "--checkpoint.every", "0")
    layout = ("--parallel.data", "1", "--parallel.fsdp", str(2 * PROCESSES))
    return jobs.job(PROCESSES, "train", path, "--run_dir", run_dir, *local, *layout, devices=2, environments=homes)


@pytest.mark.exhaustive
def test_a_job_that_loses_a_process_goes_on_beside_the_base_bit_for_bit(tmp_path):
    done = runs.launch("train", runs.write(tmp_path), "--run_dir", tmp_path / "base", "--train.steps", "2")
    assert done.returncode == 0, done.stderr
    path = runs.write_adapted(tmp_path, tmp_path / "base")
    text = path.read_text().replace("data=TextData(", f"data=DeadlyText(notes={str(tmp_path)!r}, ")
    path.write_text(text.replace("\ndef get_config", f"{DEADLY}\ndef get_config"))
    for i in range(PROCESSES):
        (tmp_path / f"host{i}").mkdir()
    with start(path, tmp_path / "whole") as job:
        assert job.wait() == [0] * PROCESSES, job.everything()
    (tmp_path / "kill_1").touch()
    with start(path, tmp_path / "run") as job:
        assert job.wait() == [75, -signal.SIGKILL], job.everything()
    with start(path, tmp_path / "run") as job:
        assert job.wait() == [0] * PROCESSES, job.everything()
        assert "Resuming at step 4." in job.out(0)
    assert runs.losses(tmp_path / "run") == runs.losses(tmp_path / "whole")
    config = config_file.load(path)
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    found, want = (load_weights(config, tmp_path / name, mesh)[0] for name in ("run", "whole"))
    jax.tree.map(np.testing.assert_array_equal, found, want)
    assert (tmp_path / "run/constants.json").is_file()
    assert not (tmp_path / "run/constants").exists()
