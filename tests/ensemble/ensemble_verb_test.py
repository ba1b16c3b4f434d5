"""Ensembles from the command line: three seeds of the digits' perceptron, and what is made of
them."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import runs
from bigmodel_jax import cli, config_file
from bigmodel_jax.core import params, sharding
from bigmodel_jax.training.saved import load_weights

CONFIG = str(Path(__file__).parents[2] / "configs" / "mnist_mlp.py")
SEEDS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    short = (
        "--train.steps",
        "15",
        "--optim.warmup_steps",
        "5",
        "--checkpoint.every",
        "5",
        "--checkpoint.keep",
        "3",
        "--eval.baselines",
        "False",
    )
    for seed in range(SEEDS):
        cli.main(["train", CONFIG, "--run_dir", str(folder / f"seed{seed}"), "--train.seed", str(seed), *short])
    return folder


def members(folder):
    return [str(folder / f"seed{seed}") for seed in range(SEEDS)]


def made(capsys, folder, *args):
    capsys.readouterr()
    cli.main(["ensemble", *map(str, args), "--json"])
    return json.loads(capsys.readouterr().out)


def evaluated(capsys, run):
    capsys.readouterr()
    cli.main(["eval", str(run), "--json"])
    return json.loads(capsys.readouterr().out)


def weights(run, which=""):
    config = config_file.load(run)
    return params.paths(jax.device_get(load_weights(config, run, sharding.make_mesh(config.parallel), which)[0]))


@pytest.mark.slow
def test_predictions_of_three_seeds_beat_the_mean_member_and_have_a_page(folder, capsys):
    page = folder / "predictions.html"
    found = made(capsys, folder, *members(folder), "--output", page)
    alone = [one["scalars"]["eval/loss"] for one in found["members"]]
    assert found["scalars"]["eval/loss"] < np.mean(alone), "the mean of probabilities cannot be worse: Jensen"
    assert alone[0] == pytest.approx(evaluated(capsys, folder / "seed0")["eval/loss"], rel=1e-5)
    assert "Mean of the predictions of 3 members" in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text()) == found


@pytest.mark.slow
def test_a_soup_is_a_run_that_is_no_worse_than_its_best_member(folder, capsys):
    found = made(capsys, folder, *members(folder), "--how", "soup", "--run_dir", folder / "soup")
    best = min(one["scalars"]["eval/loss"] for one in found["members"])
    assert found["scalars"]["eval/loss"] <= best
    assert evaluated(capsys, folder / "soup")["eval/loss"] == pytest.approx(found["scalars"]["eval/loss"], rel=1e-6)
    assert "optimistic" in (folder / "soup" / "ensemble.html").read_text()
    assert found["order"][0]["kept"]


@pytest.mark.slow
def test_saves_of_one_run_averaged_are_a_run_from_which_another_starts(folder, capsys):
    run = folder / "averaged"
    found = made(capsys, folder, folder / "seed0", "--last", "3", "--how", "weights", "--run_dir", run)
    assert [one["name"].rpartition("@")[2] for one in found["members"]] == ["5", "10", "15"]
    wanted = [weights(folder / "seed0", step) for step in ("5", "10", "15")]
    for path, x in weights(run).items():
        exact = np.mean([np.asarray(one[path], np.float64) for one in wanted], axis=0).astype(np.float32)
        np.testing.assert_array_equal(x, exact)
    assert evaluated(capsys, run)["eval/loss"] == pytest.approx(found["scalars"]["eval/loss"], rel=1e-6)
    tuned = (
        "--train.init_from",
        str(run),
        "--train.steps",
        "2",
        "--optim.warmup_steps",
        "1",
        "--run_dir",
        str(folder / "tuned"),
    )
    cli.main(["train", CONFIG, *tuned, "--eval.baselines", "False"])
    assert f"Starting from the weights of {run}" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_a_run_with_batch_norm_gets_the_statistics_of_its_training_batches(tmp_path, capsys):
    config = str(Path(CONFIG).with_name("resnet_mnist.py"))
    short = ("--train.steps", "6", "--optim.warmup_steps", "2", "--checkpoint.every", "3", "--eval.baselines", "False")
    cli.main(["train", config, "--run_dir", str(tmp_path / "run"), *short])
    options = ("--last", "2", "--how", "weights", "--batches", "5", "--run_dir", tmp_path / "mean")
    found = made(capsys, tmp_path, tmp_path / "run", *options)
    both = [weights(tmp_path / "run", step) for step in ("3", "6")]
    new = weights(tmp_path / "mean")
    assert found["recomputed"]
    for path in found["recomputed"]:
        assert not np.allclose(new[path], np.mean([one[path] for one in both], axis=0), rtol=1e-3), path
    assert evaluated(capsys, tmp_path / "mean")["eval/loss"] == pytest.approx(found["scalars"]["eval/loss"], rel=1e-6)


@pytest.mark.exhaustive
def test_a_decoders_mean_generates_in_a_process_of_its_own(tmp_path, capsys):
    config = runs.write(tmp_path)
    cli.main(["train", str(config), "--run_dir", str(tmp_path / "run")])
    made(capsys, tmp_path, tmp_path / "run", "--last", "3", "--how", "weights", "--run_dir", tmp_path / "mean")
    done = runs.launch("generate", tmp_path / "mean", "--prompt", "the ", "--max_tokens", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the ")
