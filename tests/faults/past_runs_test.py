"""Runs that earlier versions left: each is resumed, evaluated, exported, shown, and generates
(make_past_run.py)."""

import json
import shutil
from pathlib import Path

import pytest

import runs
from bigmodel_jax import cli, config_file
from bigmodel_jax.checkpoint import manifest, store
from bigmodel_jax.config import CheckpointConfig
from bigmodel_jax.core import formats
from bigmodel_jax.report import page
from bigmodel_jax.training import loop

PAST = sorted(path for path in (Path(__file__).parent / "past_runs").iterdir() if path.is_dir())


@pytest.fixture(params=PAST, ids=lambda path: path.name)
def past(request, tmp_path, monkeypatch):
    """A copy of a past version's folder, from which its run was started."""
    folder = shutil.copytree(request.param, tmp_path / "past")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
def test_a_past_run_is_used_as_its_own_version_would(past, capsys):
    # --- evaluated: what its own last evaluation said
    recorded = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    cli.main(["eval", "run", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["step"] == 8
    assert found["eval/loss"] == pytest.approx(recorded[-1]["eval/loss"], rel=1e-5)
    # --- generates, is exported and shown
    cli.main(["generate", "run", "--prompt", "the ", "--max_tokens", "4"])
    assert capsys.readouterr().out.startswith("the ")
    cli.main(["export", "run", "exported"])
    assert Path("exported/model.safetensors").is_file()
    cli.main(["report", "run"])
    assert f"{recorded[-1]['eval/loss']:.3f}"[:4] in Path("run/report.html").read_text()


@pytest.mark.slow
def test_a_past_run_is_resumed_with_the_losses_of_its_own_version(past, monkeypatch):
    # Neither a page nor a peak is made: seconds each, and none of them of the run's past.
    monkeypatch.setattr(page, "build_report", lambda folders, path: path.write_text("") and path)
    monkeypatch.setattr(loop, "peak_flops", lambda devices, dtype: (1e12, "a guess"))
    cli.main(["train", "tiny.py", "--run_dir", "run", "--train.steps", "12"])
    theirs = [json.loads(line) for line in Path("longer.jsonl").read_text().splitlines()]
    theirs = {record["step"]: record["loss"] for record in theirs if "loss" in record}
    ours = runs.losses(Path("run"))
    assert ours.keys() == theirs.keys() == set(range(1, 13))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert "nothing was recorded of them when this run began" in Path("run/log.txt").read_text()
    config, meta = json.loads(Path("run/config.json").read_text()), manifest.read(Path("run/checkpoints/12"))
    assert (config["format"], meta["step"]) == (formats.FORMAT, 12)


@pytest.mark.parametrize("verb", ["train", "eval", "generate", "export", "report"])
def test_a_run_of_a_newer_version_is_refused_in_one_line(verb, tmp_path, monkeypatch, capsys):
    shutil.copytree(PAST[0], tmp_path / "past")
    monkeypatch.chdir(tmp_path / "past")
    config = json.loads(Path("run/config.json").read_text()) | {"format": formats.FORMAT + 1, "version": "9.9"}
    Path("run/config.json").write_text(json.dumps(config))
    more = {"generate": ["--prompt", "the "], "export": ["exported"]}.get(verb, [])
    with pytest.raises(SystemExit) as end:
        cli.main([verb, "run", *more])
    assert end.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(said) == 1
    assert "config.json" in said[0]
    assert f"bigmodel_jax 9.9 wrote it in format {formats.FORMAT + 1}; this version, " in said[0]
    assert "use bigmodel_jax 9.9 or a newer one" in said[0]


def test_a_checkpoint_of_a_newer_version_is_refused_and_no_older_one_taken(tmp_path):
    folder = shutil.copytree(PAST[0], tmp_path / "past") / "run" / "checkpoints"
    shutil.copytree(folder / "8", folder / "4")
    path = folder / "8" / "meta" / "data.json"
    meta = json.loads(path.read_text())
    meta.pop("crc32")
    newer_meta = meta | {"format": formats.FORMAT + 1, "version": "9.9"}
    path.write_text(json.dumps(newer_meta | {"crc32": manifest._crc32(newer_meta)}))
    with pytest.raises(ValueError, match=r"checkpoints/8: bigmodel_jax 9\.9 wrote it in format"):
        store.read_config(folder)
    assert store.steps(store.open_store(folder, CheckpointConfig())) == [4, 8]


@pytest.mark.parametrize("number", ["2", 0, -1, True, None, 1.5])
def test_a_format_that_is_no_number_is_refused(number):
    with pytest.raises(ValueError, match="it must be a whole number, 1 or more"):
        formats.opened({"format": number}, Path("config.json"))


def test_what_is_written_says_by_which_version(tmp_path):
    config = config_file.load(runs.write(tmp_path))
    config_file.save(config, tmp_path / "config.json")
    found = json.loads((tmp_path / "config.json").read_text())
    assert (found["format"], found["version"]) == (formats.FORMAT, formats.version())
    assert config_file.load(tmp_path / "config.json") == config
