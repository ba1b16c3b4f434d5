"""Addresses: refused in one line where a path is asked for, with exit code 2 and no folder of their
name; read where not."""

import json
from pathlib import Path

import jax
import pytest

from bigmodel_jax import cli, config_file, runtime
from bigmodel_jax.core import mirror, paths
from bigmodel_jax.core.paths import check_local
from bigmodel_jax.data import cache
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
        (["train", LM_TINY, "--data.cache_dir", "s3://bucket/cache"], "data.cache_dir = 's3://bucket/cache'"),
        (["train", LM_TINY, "--data.source.data_dir", "gs://bucket/tfds"], "data.source.data_dir = 'gs://bucket/tfds'"),
        (["train", LM_TINY, "--data.tokenizer.path", "gs://b/tokenizer.json"], "data.tokenizer.path = 'gs://b/"),
        (["data", LM_TINY, "--data.cache_dir", "gs://b/c"], "data.cache_dir = 'gs://b/c'"),
        (["data", LM_TINY, "--train-tokenizer", "gs://b/t.json"], "data: --train-tokenizer = 'gs://b/t.json'"),
        (["import", "s3://bucket/model"], "import = 's3://bucket/model'"),
        (["import", "gpt2", "--run_dir", "gs://b/r"], "import: --run_dir = 'gs://b/r'"),
        (["export", "runs/a", "gs://bucket/out"], "export = 'gs://bucket/out'"),
        (["report", "runs/a", "--output", "gs://bucket/r.html"], "report: --output = 'gs://bucket/r.html'"),
        (["scale", "gs://bucket/run"], "scale = 'gs://bucket/run'"),
        (["scale", LM_TINY, "--run_dir", "gs://bucket/run"], "scale: --run_dir = 'gs://bucket/run'"),
        (["plan", LM_TINY, "--topology", "v5e:2x2", "--output", "gs://b/p"], "plan: --output = 'gs://b/p'"),
        (["plan", LM_TINY, "--topology", "v5e:2x2", "--prices", "gs://b/p.toml"], "plan: --prices = 'gs://b/p.toml'"),
        (["submit", LM_TINY, "--engine", "slurm", "--run_dir", "gs://b/r"], "submit: --run_dir = 'gs://b/r'"),
        (["submit", LM_TINY, "--engine", "slurm", "--output", "gs://b/j"], "submit: --output = 'gs://b/j'"),
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


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["train", "gs://bucket/config.py"],
            "train = 'gs://bucket/config.py': a config file is imported on this machine",
        ),
        (
            ["train", LM_TINY, "--run_dir", "s3://b/r"],
            "--run_dir = 's3://b/r': s3:// is not read and written here; give",
        ),
        (["eval", "hdfs://b/run"], "eval = 'hdfs://b/run': hdfs:// is not read and written here; give a path or gs://"),
        (["train", LM_TINY, "--train.init_from", "s3://b/run@4"], "train.init_from = 's3://b/run@4': s3:// is not"),
        (
            ["generate", "gs://bucket", "--prompt", "a"],
            "generate = 'gs://bucket' must name a bucket and what lies in it",
        ),
    ],
)
def test_an_address_that_can_be_nothing_is_one_line(args, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "_wrong", lambda scheme, bucket: "")
    with pytest.raises(SystemExit) as stopped:
        cli.main(args)
    assert stopped.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


class Refused(Exception):
    code = 401


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError("b"), "there is no bucket 'b'"),
        (Refused("no access"), r"cannot be read \(401 no access\); credentials are missing .*: gcloud auth"),
        (OSError("Forbidden: b"), r"cannot be read \(Forbidden: b\); credentials are missing or do not suffice"),
        (ConnectionError("no route"), r"cannot be read \(no route\)$"),
        (ModuleNotFoundError("gcsfs"), "gs:// needs the package gcsfs: uv sync --extra gcs"),
    ],
)
def test_what_keeps_a_bucket_from_being_read_is_one_line(error, said, monkeypatch):
    def probe(files, bucket):
        raise error

    paths._wrong.cache_clear()
    monkeypatch.setattr(paths, "files", lambda scheme: None)
    monkeypatch.setitem(paths.PROBES, "gs", probe)
    with pytest.raises(ValueError, match=f"^data.source.train = 'gs://b/x': .*{said}"):
        paths.check("data.source.train", "gs://b/x", ("gs", "s3"))
    paths._wrong.cache_clear()


def test_a_run_in_a_bucket_has_one_copy_here(tmp_path, monkeypatch):
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path))
    here = mirror.folder("gs://bucket/runs/a/")
    assert here == tmp_path / "gs" / "bucket" / "runs" / "a"
    assert str(mirror.origin(here / "checkpoints")) == "gs://bucket/runs/a/checkpoints"
    assert mirror.origin(mirror.origin(here)) == mirror.origin(here)
    assert (
        mirror.shown(f"run_dir = '{here}' holds no checkpoints")
        == "run_dir = 'gs://bucket/runs/a' holds no checkpoints"
    )
    assert mirror.folder("runs/a") == Path("runs/a")
    assert mirror.origin(Path("runs/a")) == Path.cwd() / "runs" / "a"


def test_the_environments_cache_is_a_path_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIGMODEL_CACHE", "gs://bucket/cache")
    with pytest.raises(SystemExit):
        cli.main(["data", LM_TINY])
    assert "BIGMODEL_CACHE = 'gs://bucket/cache' is an address" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("BIGMODEL_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(SystemExit):
        cli.main(["train", LM_TINY])
    assert "BIGMODEL_CACHE = '~nobody-of-this-name/cache': there is no such user" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_place_below_the_environments_cache_expands_a_home(tmp_path, monkeypatch):
    """The places are prepared data, copies of buckets and compiled programs. Each of them reads the
    variable itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BIGMODEL_CACHE", "~/cache")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    said = {}
    monkeypatch.setattr(jax.config, "update", said.__setitem__)
    runtime.keep_programs()
    here = tmp_path / "home" / "cache"
    assert (cache.root(), mirror.root()) == (here, here / "gs")
    assert said["jax_compilation_cache_dir"] == str(here / "programs")
    assert [path.name for path in tmp_path.iterdir()] == ["home"], "nothing called ~"


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
