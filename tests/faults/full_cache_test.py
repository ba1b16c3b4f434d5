"""A cache on a full disk costs a run nothing but the time to compile: one warning, and every save
is made."""

import json
import shutil
import subprocess
import sys

import pytest
from grids import few

import runs


def in_small_disk(folder, size: str, *args: str) -> list[str]:
    """A command that starts `launch.py ARGS` where `folder` is a disk of this size, in a namespace
    of its own."""
    mount = f"mount -t tmpfs -o size={size} tmpfs '{folder}'"
    return ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", *(args or ("true",))]


@pytest.fixture
def disk(tmp_path):
    """A folder that may become a disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    tried = ["unshare"] if shutil.which("unshare") is None else in_small_disk(folder, "64k")
    if shutil.which("unshare") is None or subprocess.run(tried, capture_output=True, check=False).returncode:
        pytest.skip("no disk of its own can be mounted here: unshare -rm is not there, or not permitted")
    return folder


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", few(("4k", "900k"), "900k"))  # full from the start; full from the first programs on
def test_a_run_saves_and_ends_though_its_cache_is_full(tmp_path, disk, monkeypatch, size):
    tiny, run = runs.write(tmp_path), tmp_path / "run"
    monkeypatch.setenv("BIGMODEL_CACHE", str(disk))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    # The second run keeps its data and its baselines on the small disk as well.
    data = ("--data.cache_dir", str(disk / "data")) if size == "900k" else ()
    command = [sys.executable, str(runs.ROOT / "launch.py"), "train", str(tiny), "--run_dir", str(run), *data]
    command = in_small_disk(disk, size, *command, "--train.steps", "6", "--eval.every", "3")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr
    assert done.stderr.count("compiled programs are not kept") == (size == "4k")
    assert {p.name for p in (run / "checkpoints").iterdir()} >= {"4", "6"}
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 6
    assert (run / "report.html").is_file()
