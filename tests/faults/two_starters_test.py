"""Two starts of one run: the second is refused, and the first loses nothing."""

import signal

import pytest

import runs
from bigmodel_jax import cli
from resume_test import wait_for_step


@pytest.mark.slow
def test_a_second_start_is_refused_and_the_first_one_loses_no_record(tmp_path):
    path, run_dir = runs.write(tmp_path), tmp_path / "run"
    first = runs.start("train", path, "--run_dir", run_dir, "--train.steps", "100000")
    wait_for_step(first, run_dir, 5)
    second = runs.launch("train", path, "--run_dir", run_dir, "--train.steps", "100000")
    assert second.returncode == 2
    assert f"is in use: process {first.pid} on " in second.stderr
    assert second.stderr.count("\n") == 1
    cli.main(["report", str(run_dir)])  # reading beside it is allowed
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 0, said
    steps = list(runs.losses(run_dir))
    assert steps == list(range(1, len(steps) + 1))
    assert not (run_dir / "holder.json").exists()


@pytest.mark.slow
def test_a_run_whose_config_file_was_cut_is_resumed(tmp_path, capsys):
    path, run_dir = runs.write(tmp_path), tmp_path / "run"
    cli.main(["train", str(path), "--run_dir", str(run_dir), "--train.steps", "4", *runs.BARE])
    config = run_dir / "config.json"
    config.write_text(config.read_text()[:200])
    cli.main(["train", str(run_dir), "--train.steps", "8", *runs.BARE])
    assert "Resuming at step 4" in capsys.readouterr().out
    assert list(runs.losses(run_dir)) == list(range(1, 9))
