"""What the command line says, as a newcomer reads it."""

import dataclasses
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bigmodel_jax import cli, config, config_file

ROOT = Path(__file__).parents[1]
LM_TINY = str(ROOT / "configs" / "lm_tiny.py")


@pytest.fixture(params=[80, 100])
def width(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def test_launch_alone_shows_every_verb_in_one_line_each(width, capsys):
    cli.main([])
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= width
    for name, verb in cli.VERBS.items():
        assert [line for line in lines if line.startswith(f"  {name} ") and verb.summary in line], name
        assert f"  python launch.py {verb.examples[0]}" in lines


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ("/somewhere/bin/bigmodel-jax", "bigmodel-jax"),
        ("/somewhere/bigmodel_jax/__main__.py", "python -m bigmodel_jax"),
        ("launch.py", "python launch.py"),
    ],
)
def test_the_help_names_the_program_as_it_was_started(argv, name, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [argv])
    cli.main([])
    cli.main(["train", "--help"])
    assert f"Usage     {name} VERB" in (out := capsys.readouterr().out)
    assert f"Usage     {name} train CONFIG" in out
    assert f"  {name} train configs/lm_tiny.py" in out


def test_the_package_is_a_program_and_has_a_console_script():
    done = subprocess.run([sys.executable, "-m", "bigmodel_jax"], capture_output=True, text=True, check=True)
    assert "Usage     python -m bigmodel_jax VERB" in done.stdout
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"bigmodel-jax": "bigmodel_jax.__main__:start"}
    assert callable(importlib.import_module("bigmodel_jax.__main__").start)


def test_the_first_command_installs_no_tool_of_the_developers():
    """`uv run` installs the default groups. The digits of configs/mnist_*.py are data, and all else
    is for developers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["uv"]["default-groups"] == ["digits"]
    groups, extras = project["dependency-groups"], project["project"]["optional-dependencies"]
    assert groups["digits"] == extras["digits"]
    run = (ROOT / ".ci" / "run").read_text()
    assert all("--group dev" in line for line in run.splitlines() if line.startswith("uv run"))


def test_help_is_the_overview(capsys):
    cli.main([])
    alone = capsys.readouterr().out
    for args in (["--help"], ["-h"], ["help"]):
        cli.main(args)
        assert capsys.readouterr().out == alone


@pytest.mark.parametrize("name", cli.VERBS)
def test_a_verbs_help_fits_the_terminal_and_its_examples_are_of_that_verb(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    cli.main([name, "--help"])
    out = capsys.readouterr().out
    assert f"python launch.py {cli.VERBS[name].usage}" in out
    text, examples = out.split("Examples\n")
    assert max(len(line) for line in text.splitlines()) <= 84
    assert all(line.startswith(f"  python launch.py {name} ") for line in examples.strip("\n").splitlines())


# Verbs whose options are not those of a config alone.
OPTIONS_OF_THEIR_OWN = set(
    [
        "cross-validate",
        "ensemble",
        "explain",
        "export",
        "find-rate",
        "generate",
        "profile",
        "prune",
        "quantize",
        "report",
        "scale",
        "serve",
        "submit",
        "sweep",
    ]
)


def test_examples_name_configs_and_options_that_exist():
    """Options of `train`, `eval` and `data` are fields of the config, or `--run_dir`; configs are
    files that ship."""
    own = {"run_dir", "dtype", "topology", "search", "step", "mtbf", "workers", "harness", "limit", "steps", "warmup"}
    own |= {"serve", "slots", "length", "weights", "format"}
    fields = set(config.flat(config_file.load(LM_TINY))) | own
    for verb in cli.VERBS.values():
        for example in verb.examples:
            assert all((ROOT / path).is_file() for path in re.findall(r"configs/\S+", example)), example
            if example.split()[0] not in OPTIONS_OF_THEIR_OWN:
                assert set(re.findall(r"--(\S+)", example)) <= fields, example


def test_the_help_of_export_names_its_formats_and_the_examples_their_options():
    from bigmodel_jax.export.formats import FORMATS

    verb = cli.VERBS["export"]
    assert [name for name in FORMATS if name not in verb.details] == []
    listed = set(re.findall(r"--(\w+)", verb.details))
    assert {option for example in verb.examples for option in re.findall(r"--(\w+)", example)} <= listed


def test_the_help_of_generate_lists_the_options_that_it_takes():
    listed = set(re.findall(r"--(\w+)", cli.VERBS["generate"].details))
    own = {"seed", "num_samples", "chat", "step", "adapter", "image"}
    assert listed == {f.name for f in dataclasses.fields(config.SampleConfig)} | own


@pytest.mark.parametrize("verb", ["train", "eval", "data"])
def test_help_of_a_config_lists_every_field_with_its_value(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, LM_TINY, "--help"])
    assert not stop.value.code
    out = capsys.readouterr().out
    loaded = config_file.load(LM_TINY)
    for name, value in config.flat(loaded).items():
        if not (isinstance(value, str) and value.endswith(("Compute", "Config", "Data", "Rules", "Policy", "Scaling"))):
            # These are written in a config file; each entry that is there has options,
            # `--optim.groups.0.lr`.
            written = ("config", "objective", "data.source", "optim.groups", "eval.sets")
            assert f"--{name} " in out or name in written, name
    assert f"(default: {loaded.optim.lr})" in out


@pytest.mark.parametrize(
    ("typed", "meant"), [("trian", "train"), ("reprot", "report"), ("gen", "generate"), ("dat", "data")]
)
def test_an_unknown_verb_suggests_the_nearest(typed, meant, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([typed])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert f"{typed!r} is unknown (perhaps you meant {meant!r})" in err
    assert all(name in err for name in cli.VERBS)


def test_a_verb_without_its_config_shows_its_help_and_what_is_missing(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train"])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert "Examples" in said.out
    assert said.err.startswith("error: train: ")


def test_words_between_colons_are_printed_as_they_are(capsys):
    """Rich makes a picture of `:cat:` unless each console is told not to."""
    cli.main(["prune", "--help"])
    assert "another N:M: N of" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main([":cat:"])
    assert "verb ':cat:' is unknown" in capsys.readouterr().err
    consoles = [
        call
        for path in (ROOT / "bigmodel_jax").rglob("*.py")
        for call in re.findall(r"(?<!\w)Console\([^)]*\)", path.read_text())
    ]
    assert consoles
    assert [call for call in consoles if "emoji=False" not in call] == []


def test_the_data_verb_shows_both_splits(capsys, tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.txt").write_text("one sentence of a text. " * 20)
    path = tmp_path / "c.py"
    path.write_text(
        "from bigmodel_jax.config import Config\nfrom bigmodel_jax.data import *\nfrom bigmodel_jax.models import LlamaConfig\n"
        "from bigmodel_jax.objectives import NextToken\n"
        f"def get_config():\n    source = TextFiles({str(tmp_path / 'train.txt')!r}, {str(tmp_path / 'validation.txt')!r})\n"
        "    data = TextData(source=source, tokenizer=TokenizerConfig('bytes'), seq_len=16, "
        f"cache_dir={str(tmp_path / 'cache')!r})\n    return Config(LlamaConfig.tiny(), NextToken(), data)\n"
    )
    cli.main(["data", str(path), "--data.seq_len", "32"])
    out = capsys.readouterr().out
    assert "validation" in out
    assert "one sentence of a text" in out
