"""A run that is killed and resumed is the run that was not: every logged loss and every parameter,
bit for bit."""

import dataclasses
import itertools
import json
import signal
import time

import chex
import jax
import numpy as np
import pytest

import runs
from bigmodel_jax import cli, config_file
from bigmodel_jax.checkpoint import store
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.report import goodput
from bigmodel_jax.training.state import abstract_state
from chaos_runs import Commands


def final_state(path, run_dir):
    config = dataclasses.replace(config_file.load(path), parallel=ParallelConfig(data=1))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    with store.open_store(run_dir / "checkpoints", config.checkpoint) as saves:
        return store.restore(saves, abstract_state(config, mesh))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns a config file and the folder of its run, which nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    path = runs.write(folder)
    done = runs.launch("train", path, "--run_dir", folder / "run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert not [line for line in lines if line.startswith("{")], "JSON that nobody asked for"
    stages = ("Importing packages", "Preparing data", "Building the model", "Compiling the step", "Writing the report")
    assert [line for line in lines if line.endswith(" ...")] == [f"{stage} ..." for stage in stages]
    assert lines[0] == "Importing packages ..."
    return path, folder / "run"


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Starts commands without the seconds of their imports."""
    with Commands(tmp_path_factory.mktemp("said")) as commands:
        yield commands


def wait_for_step(process, run_dir, step):
    """Until the metrics of `step` are written."""
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        if (run_dir / "metrics.jsonl").exists() and max(runs.losses(run_dir), default=0) >= step:
            return
        time.sleep(0.002)
    raise AssertionError(f"step {step} was not reached: {process.communicate()}")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "kill_after", [pytest.param(3, marks=pytest.mark.exhaustive), 10]
)  # before the first save, after two
def test_sigkill_between_two_saves(whole, tmp_path, kill_after):
    path, uninterrupted = whole
    run_dir = tmp_path / "run"
    process = runs.start("train", path, "--run_dir", run_dir)
    wait_for_step(process, run_dir, kill_after)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    done = runs.launch("train", path, "--run_dir", run_dir)
    assert done.returncode == 0, done.stderr
    assert runs.losses(run_dir) == runs.losses(uninterrupted)
    a, b = final_state(path, run_dir), final_state(path, uninterrupted)
    assert a.step == b.step == 12
    assert a.data_state == b.data_state
    chex.assert_trees_all_equal(a.state, b.state)
    check_wall_time(run_dir, done.stdout)


def check_wall_time(run_dir, printed):
    """What the record of a run that was killed once says of its wall time, beside when its lines
    were written."""
    found = goodput.read(run_dir)
    lines = [json.loads(line) for line in (run_dir / goodput.FILE).read_text().splitlines()]
    assert found.wall == sum(found.parts.values()) == lines[-1]["time"] - lines[0]["time"]
    first, second = (i for i, line in enumerate(lines) if line["phase"] == "start")
    assert found.parts["down"] == lines[second]["time"] - lines[second - 1]["time"] > 0
    began = lines[second]["step"]
    lost = [(a, b) for a, b in itertools.pairwise(lines[first:second]) if b["phase"] == "steps" and a["step"] >= began]
    assert found.parts["lost"] == sum(b["time"] - a["time"] - b.get("data", 0) for a, b in lost)
    assert found.parts["lost"] > 0 or lines[second - 1]["step"] == began, "the kill came right after a save"
    assert all(found.parts[name] > 0 for name in ("steps", "compile", "save", "eval", "other"))
    assert (found.parts["restore"] > 0) == (began > 0)
    assert printed.splitlines()[-1].startswith("Goodput ")
    assert found.text() in (run_dir / "log.txt").read_text()


@pytest.mark.exhaustive
def test_sigterm_saves_and_exits_0_and_the_rest_is_the_same(whole, tmp_path):
    path, uninterrupted = whole
    run_dir = tmp_path / "run"
    process = runs.start("train", path, "--run_dir", run_dir, "--checkpoint.every", "0")
    wait_for_step(process, run_dir, 2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 0
    assert "interrupted by SIGTERM; saved at step" in err
    assert runs.launch("train", path, "--run_dir", run_dir).returncode == 0
    assert runs.losses(run_dir) == runs.losses(uninterrupted)


@pytest.mark.slow
def test_another_mesh_and_more_steps_continue_with_the_same_batches(whole, commands, tmp_path):
    """The run trains on 8 devices to step 4 and on 1 device to step 12. It equals the one-device
    run up to rounding."""
    path, uninterrupted = whole
    run_dir = tmp_path / "run"
    args = ("--train.steps", "4", "--parallel.data", "2", "--parallel.fsdp", "4")
    eight = runs.launch("train", path, "--run_dir", run_dir, *args, devices=8)
    assert eight.returncode == 0, eight.stderr
    args = ("--train.steps", "12", "--parallel.data", "1", "--parallel.fsdp", "1")
    done = commands.run("train", path, "--run_dir", run_dir, *args)
    assert done.code == 0, done.err
    assert "Resuming at step 4" in done.out
    got, want = runs.losses(run_dir), runs.losses(uninterrupted)
    np.testing.assert_allclose([got[s] for s in sorted(want)], [want[s] for s in sorted(want)], rtol=1e-5)
    (run_dir / "report.html").unlink()  # as if killed between the last save and the page
    again = commands.run("train", path, "--run_dir", run_dir)
    assert again.code == 0
    assert "is complete" in again.out
    assert (run_dir / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_folder_of_a_run_holds_what_it_should(whole):
    path, run_dir = whole
    for name in ("config.json", "environment.json", "metrics.jsonl", "report.html", "log.txt", "tokenizer.json"):
        assert (run_dir / name).stat().st_size > 0, name
    assert len(list((run_dir / "plots").glob("*.png"))) >= 5
    assert list((run_dir / "tensorboard").iterdir())
    assert (run_dir / "samples" / "00000012.txt").read_text().startswith("the ")
    assert config_file.load(run_dir) == config_file.load(path)
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    training = {
        "step",
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "mfu",
        "step_seconds",
        "data_wait_seconds",
    }
    assert training <= set(records[0])
    assert {"eval/loss", "eval/perplexity", "eval/bits_per_byte", "eval/accuracy"} <= set(records[-1])


@pytest.mark.slow
def test_config_json_alone_repeats_the_run(whole, commands, tmp_path):
    _, run_dir = whole
    again = tmp_path / "again"
    done = commands.run("train", run_dir / "config.json", "--run_dir", again)
    assert done.code == 0, done.err
    assert runs.losses(again) == runs.losses(run_dir)


@pytest.mark.slow
def test_the_last_line_is_the_last_evaluation_where_json_is_asked_for(whole, commands):
    path, run_dir = whole
    done = commands.run("train", path, "--run_dir", run_dir, "--json")  # complete: it only says so
    assert done.code == 0, done.err
    *_, last = done.out.splitlines()
    assert json.loads(last) == json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.slow
def test_eval_and_generate_read_the_run(whole, commands, capsys):
    _, run_dir = whole
    record = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    done = commands.run("eval", run_dir)
    assert done.code == 0, done.err
    assert f"{record['eval/bits_per_byte']:.5g}" in done.out
    cli.main(["eval", str(run_dir), "--json"])  # here, on eight devices
    as_json = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(as_json["eval/bits_per_byte"], record["eval/bits_per_byte"], rtol=1e-5)
    args = ("generate", str(run_dir), "--prompt", "the quick", "--max_tokens", "5", "--temperature", "0")
    done = commands.run(*args)
    assert done.code == 0, done.err
    assert done.out.startswith("the quick")
    cli.main(args)
    assert capsys.readouterr().out == done.out
