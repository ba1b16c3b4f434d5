"""One process of a sweep for each group of devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bigmodel_jax.sweep import groups
from bigmodel_jax.verbs.sweeping import sweep

FILE = Path(__file__).with_name("small_sweep.py")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("0,1", "1,2"), "--groups 0,1 1,2: device 1 is named twice; each belongs to one group"),
        (("0,1,2", "3,4"), "the groups have 2 and 3 devices; give each the same number"),
        (("0,", "1"), "a device has no name; give groups such as 0,1 2,3"),
        (("0,1,2,3", "4,5,6,8"), "device 8 is not there; JAX_NUM_CPU_DEVICES = 8 makes the devices 0 to 7"),
        (("0,1,2", "3,4,5"), "--groups 0,1,2 3,4,5: each process has 3 devices; parallel: .*fsdp=2 .*3 devices"),
    ],
)
def test_groups_that_do_not_fit_are_one_line_before_anything_starts(given, text, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    with pytest.raises(ValueError, match=text) as error:
        sweep([str(FILE), "--run_dir", str(tmp_path / "s"), "--parallel.fsdp", "2", "--groups", *given])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("given", [("--groups", "0,1", "2,3"), ("--pruner", "asha"), ("--trials", "4")])
def test_a_comparison_of_two_configs_refuses_the_options_of_a_search(given, tmp_path):
    folder = tmp_path / "s"
    text = f"{' '.join(given)}: two configs are compared without a search; leave it out, or name one config"
    with pytest.raises(ValueError, match=text):
        sweep([str(FILE), str(FILE), "--seeds", "2", "--run_dir", str(folder), *given])
    assert not folder.exists()


def test_a_process_sees_the_devices_of_its_group(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    assert groups.environment("4,5") == dict.fromkeys(groups.VISIBLE, "4,5") | {"JAX_NUM_CPU_DEVICES": "2"}
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    assert groups.environment("GPU-1,GPU-2") == dict.fromkeys(groups.VISIBLE, "GPU-1,GPU-2")
    with pytest.raises(ValueError, match="--groups 0,1: the process sees 1 devices, not 2"):
        groups.check_seen("0,1", 1)


@pytest.mark.slow
def test_each_group_trains_trials_on_its_devices(tmp_path):
    folder = tmp_path / "sweep"
    command = [sys.executable, "launch.py", "sweep", str(FILE), "--trials", "4", "--run_dir", str(folder)]
    command += ["--data.cache_dir", str(tmp_path / "cache"), "--groups", "0,1,2,3", "4,5,6,7"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    record = json.loads((folder / "sweep.json").read_text())
    assert [trial["state"] for trial in record["trials"]] == ["complete"] * 4
    for trial in record["trials"]:
        environment = json.loads((folder / "trials" / f"{trial['number']:04d}" / "environment.json").read_text())
        assert environment["devices"] == ["4 x cpu"]
