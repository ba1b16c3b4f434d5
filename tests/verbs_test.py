"""Where a run's folder is, by what the command line names."""

from pathlib import Path

from bigmodel_jax.verbs.base import run_dir_of


def test_a_config_names_its_runs_folder_and_a_folder_names_itself(tmp_path):
    assert run_dir_of(Path("configs/lm_tiny.py")) == Path("runs/lm_tiny")
    assert run_dir_of(tmp_path) == tmp_path
    assert run_dir_of(tmp_path / "config.json") == tmp_path
