"""Pruning from the command line: sparse runs that heal and go on sparse, smaller runs, and runs
that prune themselves."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from grids import few

import runs
from bigmodel_jax import cli, config_file
from bigmodel_jax.core import params, sharding
from bigmodel_jax.models.adapters import Lora
from bigmodel_jax.optim.pruning import PruneConfig, targets
from bigmodel_jax.training.saved import load_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder with tiny.py and its run of 12 steps."""
    folder = tmp_path_factory.mktemp("prune")
    cli.main(["train", str(runs.write(folder)), "--run_dir", str(folder / "run"), *runs.BARE])
    return folder


def made(capsys, *args):
    capsys.readouterr()
    cli.main(["prune", *map(str, args), "--json"])
    return json.loads(capsys.readouterr().out)


def said(capsys, *args):
    capsys.readouterr()
    cli.main([*map(str, args)])
    return capsys.readouterr().out


def weights(run):
    config = config_file.load(run)
    return params.paths(jax.device_get(load_weights(config, run, sharding.make_mesh(config.parallel))[0]))


def zeros(run):
    """{path: where each target is zero}."""
    found = weights(run)
    return {path: found[path] == 0 for path in targets("", config_file.load(run).make_model().spec)}


@pytest.mark.exhaustive
def test_a_sparse_run_heals_and_is_fine_tuned_with_its_zeros(folder, capsys):
    run = folder / "sparse"
    found = made(capsys, folder / "run", run, "--kind", "wanda", "--curve", "0.3", "--sparsity", "0.5", "--heal", "4")
    assert [point["asked"] for point in found["points"]] == [0.3, 0.5]
    sparse = zeros(run)
    assert all(zero.mean() == 0.5 for zero in sparse.values())
    evaluated = json.loads(said(capsys, "eval", run, "--json"))
    assert evaluated["eval/loss"] == pytest.approx(found["points"][-1]["healed"]["eval/loss"], rel=1e-6)
    assert "healed" in (run / "prune.html").read_text()
    assert said(capsys, "generate", run, "--prompt", "the ", "--max_tokens", "3").startswith("the ")
    # The folder's config keeps zeros: a fine-tune from it does.
    config = ("train", run, "--run_dir", folder / "tuned", "--train.init_from", run, "--train.steps", "3", *runs.BARE)
    said(capsys, *config)
    for path, zero in zeros(folder / "tuned").items():
        np.testing.assert_array_equal(zero, sparse[path])
    assert (weights(folder / "tuned")["layers/attn/q"] != weights(run)["layers/attn/q"]).any()


@pytest.mark.slow
def test_two_of_every_four_stay(folder, capsys):
    made(capsys, folder / "run", folder / "two_of_four", "--pattern", "2:4", "--targets", "layers/mlp/(up|down)")
    zero = zeros(folder / "two_of_four")
    for path, found in zero.items():
        if path in ("layers/mlp/up", "layers/mlp/down"):
            layers, inputs, outputs = found.shape
            assert (found.reshape(layers, inputs // 4, 4, outputs).sum(2) == 2).all()
        else:
            assert not found.any(), path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "field", "size"),
    few([("structured_layers", "num_layers", 1), ("mlp_channels", "mlp_dim", 32)], ("mlp_channels", "mlp_dim", 32)),
)
def test_a_smaller_run_is_a_run(folder, capsys, kind, field, size):
    run = folder / kind
    found = made(capsys, folder / "run", run, "--kind", kind, "--sparsity", "0.5")
    assert getattr(config_file.load(run).model, field) == size
    assert found["points"][0]["parameters"] < found["dense"]["parameters"]
    evaluated = json.loads(said(capsys, "eval", run, "--json"))
    assert evaluated["eval/loss"] == pytest.approx(found["points"][0]["scalars"]["eval/loss"], rel=1e-6)
    assert said(capsys, "generate", run, "--prompt", "the ", "--max_tokens", "3").startswith("the ")


@pytest.mark.slow
def test_a_run_that_prunes_itself_resumes_bit_for_bit(folder, capsys):
    prune = ("--optim.prune.sparsity", "0.5", "--optim.prune.every", "2", "--optim.ema_decay", "0.9")
    command = ("train", folder / "tiny.py", "--run_dir", folder / "gradual", *prune, *runs.BARE)
    said(capsys, *command)
    whole, losses = weights(folder / "gradual"), runs.losses(folder / "gradual")
    assert all(zero.mean() == 0.5 for zero in zeros(folder / "gradual").values())
    for step in ("8", "12"):
        shutil.rmtree(folder / "gradual" / "checkpoints" / step)
    assert "Resuming at step 4" in said(capsys, *command)
    again = weights(folder / "gradual")
    assert runs.losses(folder / "gradual") == losses
    assert all((again[path] == x).all() for path, x in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--pattern", "3:2"], "it must be N:M with 0 < N < M"),
        (
            ["--pattern", "2:4", "--sparsity", "0.7"],
            "--sparsity 0.7: --pattern 2:4 already prunes 0.5 of the weights",
        ),
        (["--kind", "mlp_channels", "--targets", "x"], "--targets = 'x' goes with --kind magnitude and wanda"),
        (["--lr", "0.1"], "--lr 0.1 needs --heal N, the number of steps at that rate"),
        (["--sparsity", "1.0"], "it must be above 0 and below 1"),
        (["--targets", "layers/mlp/upp"], "the nearest: layers/mlp/up"),
        (["--targets", "embed/table"], "--targets leaves it out"),
        (["--pattern", "3:5"], "inputs, no multiple of 5"),
        (["--kind", "wnda"], "perhaps you meant 'wanda'"),
        (["--metric", "los"], "perhaps you meant 'eval/loss'"),
        (["--step", "5"], "that step is not kept"),
    ],
    ids=str,
)
def test_what_cannot_be_pruned_so_is_one_line_and_leaves_nothing(folder, capsys, args, says):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["prune", str(folder / "run"), str(folder / "refused"), *args])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.strip().count("\n") == 0
    assert not (folder / "refused").exists()


@pytest.mark.slow
def test_a_run_with_adapters_and_a_folder_that_is_taken_are_refused(folder, capsys):
    adapted = shutil.copytree(folder / "run", folder / "adapted")
    config = dataclasses.replace(config_file.load(adapted), adapters=Lora(rank=2))
    config_file.save(config, adapted / "config.json")
    for target, says in ((folder / "adapted", "the run has adapters"), (folder / "run", "exists and is not empty")):
        with pytest.raises(SystemExit):
            cli.main(["prune", str(target), str(folder / "run" if target.name == "run" else folder / "no")])
        assert says in capsys.readouterr().err


def test_the_defaults_prune_nothing():
    assert not PruneConfig().on
