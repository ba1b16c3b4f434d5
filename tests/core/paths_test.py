"""An address of an object store where a path is asked for: one line, exit code 2, and no folder of its name here."""

import json
from pathlib import Path

import pytest

from bigmodel_jax import cli, config_file
from bigmodel_jax.core.paths import check_local
from bigmodel_jax.verbs import base

LM_TINY = str(Path(__file__).parents[2] / "configs" / "lm_tiny.py")


@pytest.mark.parametrize(
    "path", ["gs://bucket/run", "s3://a/b", "hdfs://x", "https://x/y.jsonl", "az://c", Path("gs://b/r")]
)
def test_addresses_are_refused(path):
    with pytest.raises(
        ValueError, match=r"^run_dir = '.*' is an address; files are read and written on this machine alone"
    ):
        check_local("run_dir", path)


@pytest.mark.parametrize(
    "path", ["", "runs/a", "/mnt/gs/run", "C:/runs", "a:b", "notes: 1/x", "./gs:/x", "runs/gs://x"]
)
def test_paths_are_not(path):
    check_local("run_dir", path)


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (["train", LM_TINY, "--run_dir", "gs://bucket/run"], "--run_dir = 'gs://bucket/run'"),
        (["train", "gs://bucket/config.py"], "train = 'gs://bucket/config.py'"),
        (["train", LM_TINY, "--data.cache_dir", "s3://bucket/cache"], "data.cache_dir = 's3://bucket/cache'"),
        (["train", LM_TINY, "--data.source.data_dir", "gs://bucket/tfds"], "data.source.data_dir = 'gs://bucket/tfds'"),
        (["train", LM_TINY, "--data.tokenizer.path", "gs://b/tokenizer.json"], "data.tokenizer.path = 'gs://b/"),
        (["train", LM_TINY, "--train.init_from", "gs://b/run"], "train.init_from = 'gs://b/run'"),
        (["eval", "gs://bucket/run"], "eval = 'gs://bucket/run'"),
        (["generate", "gs://bucket/run", "--prompt", "see http://x.org"], "generate = 'gs://bucket/run'"),
        (["report", "gs://bucket/run"], "report = 'gs://bucket/run'"),
        (["data", LM_TINY, "--data.cache_dir", "gs://b/c"], "data.cache_dir = 'gs://b/c'"),
        (["data", LM_TINY, "--train-tokenizer", "gs://b/t.json"], "--train-tokenizer = 'gs://b/t.json'"),
        (["import", "s3://bucket/model"], "import = 's3://bucket/model'"),
        (["import", "gpt2", "--run_dir", "gs://b/r"], "--run_dir = 'gs://b/r'"),
        (["export", "runs/a", "gs://bucket/out"], "export = 'gs://bucket/out'"),
        (["scale", LM_TINY, "--run_dir", "gs://bucket/run"], "--run_dir = 'gs://bucket/run'"),
        (["plan", LM_TINY, "--topology", "v5e:2x2", "--output", "gs://b/p"], "--output = 'gs://b/p'"),
        (["plan", LM_TINY, "--topology", "v5e:2x2", "--prices", "gs://b/p.toml"], "--prices = 'gs://b/p.toml'"),
        (["submit", LM_TINY, "--engine", "slurm", "--run_dir", "gs://b/r"], "--run_dir = 'gs://b/r'"),
        (["submit", LM_TINY, "--engine", "slurm", "--output", "gs://b/j"], "--output = 'gs://b/j'"),
    ],
)
def test_every_verb_says_it_in_one_line_and_makes_nothing(args, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(args)
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert f"error: {option}" in said
    assert "is an address" in said
    assert len(said.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_environments_cache_is_a_path_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIGMODEL_CACHE", "gs://bucket/cache")
    with pytest.raises(SystemExit):
        cli.main(["data", LM_TINY])
    assert "BIGMODEL_CACHE = 'gs://bucket/cache' is an address" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_user_who_does_not_exist_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["data", LM_TINY, "--data.cache_dir", "~nouser/cache"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip()
    assert "data.cache_dir = '~nouser/cache': there is no such user" in said
    assert "\n" not in said


def test_a_runs_folder_may_be_a_users_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert base.local("--run_dir", "~/runs/x") == tmp_path / "runs" / "x"
    with pytest.raises(SystemExit):
        cli.main(["train", LM_TINY, "--run_dir", "~nouser/x"])
    assert "--run_dir = '~nouser/x': there is no such user" in " ".join(capsys.readouterr().err.split())


def test_a_seed_of_a_text_has_a_range(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(config_file.to_json(config_file.load(LM_TINY))))
    with pytest.raises(SystemExit):
        cli.main(["generate", str(tmp_path), "--prompt", "a", "--seed", str(2**70)])
    assert f"seed = {2**70}; it must be 0 or more and below 2**32" in " ".join(capsys.readouterr().err.split())
