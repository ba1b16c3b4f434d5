"""A LoRA run, whose base lies in another run, is killed and resumed, on one device and on 8, bit
for bit."""

import json
import signal

import jax
import numpy as np
import pytest

import runs
from bigmodel_jax import config_file
from bigmodel_jax.core import sharding
from bigmodel_jax.training.saved import load_weights
from resume_test import wait_for_step

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of the files, with the run `base` in it."""
    folder = tmp_path_factory.mktemp("base")
    done = runs.launch("train", runs.write(folder), "--run_dir", folder / "base", "--train.steps", "2")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("devices", "layout"),
    [pytest.param(1, (), marks=pytest.mark.exhaustive), (8, ("--parallel.fsdp", "4", "--parallel.tensor", "2"))],
)
def test_a_killed_run_goes_on_from_the_source_bit_for_bit(base, tmp_path, devices, layout):
    path = runs.write_adapted(base, base / "base")
    layout = ("--parallel.data", "1", *layout)
    whole = runs.launch("train", path, "--run_dir", tmp_path / "whole", *layout, devices=devices)
    assert whole.returncode == 0, whole.stderr
    process = runs.start("train", path, "--run_dir", tmp_path / "run", *layout, devices=devices)
    wait_for_step(process, tmp_path / "run", 10)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = runs.launch("train", path, "--run_dir", tmp_path / "run", *layout, devices=devices)
    assert done.returncode == 0, done.stderr
    assert "Resuming at step" in done.stdout
    assert runs.losses(tmp_path / "run") == runs.losses(tmp_path / "whole")
    config = config_file.load(path)
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    found, want = (load_weights(config, tmp_path / name, mesh)[0] for name in ("run", "whole"))
    jax.tree.map(np.testing.assert_array_equal, found, want)
    for name in ("run", "whole"):
        assert not (tmp_path / name / "constants").exists()
        saved = json.loads((tmp_path / name / "checkpoints/12/meta/data.json").read_text())["leaves"]
        assert {leaf.split("/")[1] for leaf in saved if leaf.startswith(("params/", "frozen/"))} == {"adapters"}
        assert not any("/embed/" in leaf and "adapters" not in leaf for leaf in saved)


@pytest.mark.exhaustive
def test_a_source_that_is_gone_is_exit_code_2_and_one_line(base, tmp_path):
    path = runs.write_adapted(base, base / "base")
    args = ("train", path, "--run_dir", tmp_path / "run", "--parallel.data", "1")
    assert runs.launch(*args, "--train.steps", "2").returncode == 0
    (base / "base").rename(base / "elsewhere")
    done = runs.launch(*args)
    (base / "elsewhere").rename(base / "base")
    assert done.returncode == 2
    assert done.stderr.startswith("error: run_dir = ")
    assert done.stderr.count("\n") == 1
    assert "is gone, from which this run takes its constant parameters; put it back" in done.stderr
