"""Several adapters on one base, from the command line: trained one after the other, and used one at
a time."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

import runs
from bigmodel_jax import cli, config_file
from bigmodel_jax.core import params, sharding
from bigmodel_jax.models.adapters import AdapterConfig, Lora, Several
from bigmodel_jax.pretrained.adapter_transfer import export_adapters
from bigmodel_jax.training.evaluate_saved import evaluate_run
from bigmodel_jax.training.saved import chosen, load_weights, merged

ONE, TWO = 'Lora("one", targets="layers/.*/q", rank=2)', 'Lora("two", targets="layers/.*", rank=3, alpha=64.0)'


def write(folder, name: str, adapters: str, source) -> str:
    """The config file `name` of a run that begins at `source`."""
    text = (folder / "tiny.py").read_text().replace("data=TextData(", f"adapters={adapters},\n        data=TextData(")
    text = text.replace("train=TrainConfig(", f"train=TrainConfig(init_from={str(source)!r}, ").replace("3e-3", "3e-2")
    (folder / f"{name}.py").write_text(f"from bigmodel_jax.models.adapters import Lora, Several\n{text}")
    return str(folder / f"{name}.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder with the runs base, first (adapter one) and second (adapter two, trained beside
    one)."""
    folder = tmp_path_factory.mktemp("several")
    config = str(runs.write(folder))
    several = f'Several(({ONE}, {TWO}), trained="two")'
    cli.main(["train", config, "--run_dir", str(folder / "base"), "--train.steps", "2", *runs.BARE])
    first = write(folder, "first", ONE, folder / "base")
    cli.main(["train", first, "--run_dir", str(folder / "first"), "--train.steps", "4", *runs.BARE])
    second = write(folder, "second", several, folder / "first")
    for steps in ("2", "4"):  # once more: it resumes
        cli.main(["train", second, "--run_dir", str(folder / "second"), "--train.steps", steps, *runs.BARE])
    return folder


def values(run):
    config = config_file.load(run)
    return params.paths(jax.device_get(load_weights(config, run, sharding.make_mesh(config.parallel))[0]))


def said(capsys, *args) -> str:
    capsys.readouterr()
    cli.main([str(arg) for arg in args])
    return capsys.readouterr().out


def evaluated(capsys, run, *args) -> float:
    return json.loads(said(capsys, "eval", run, *args, "--json"))["eval/loss"]


@pytest.mark.slow
def test_the_second_adapter_trains_beside_the_first_which_stays(trained):
    first, second = values(trained / "first"), values(trained / "second")
    for path in first:
        np.testing.assert_array_equal(second[path], first[path], err_msg=path)
    assert any(
        np.abs(x).max() > 0 for path, x in second.items() if path.startswith("adapters/two/") and path[-1] == "b"
    )
    saved = json.loads((trained / "second/checkpoints/4/meta/data.json").read_text())["leaves"]
    assert {leaf.split("/")[2] for leaf in saved if leaf.startswith("params/")} == {"two"}
    assert not (trained / "second" / "constants").exists()


@pytest.mark.slow
def test_a_name_chooses_what_is_evaluated_generated_and_exported(trained, tmp_path, capsys, monkeypatch):
    first, second, base = (trained / name for name in ("first", "second", "base"))
    both, two = (evaluated(capsys, second, *args) for args in ((), ("--adapter", "two")))
    # The command of docs/eval.md.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/two").symlink_to(second)
    command = re.search(r"launch.py eval (runs/two .*?)  #", (runs.ROOT / "docs/eval.md").read_text())[1]
    alone = evaluated(capsys, *command.split())
    assert alone == pytest.approx(evaluated(capsys, first), rel=1e-6)
    assert both == pytest.approx(evaluated(capsys, second, "--adapter", "two,one"), rel=1e-6)
    assert len({round(x, 3) for x in (alone, both, two)}) == 3

    prompt = ("--prompt", "the quick", "--temperature", "0", "--max_tokens", "12")
    assert said(capsys, "generate", second, *prompt, "--adapter", "one") == said(capsys, "generate", first, *prompt)

    said(capsys, "export", second, tmp_path / "merged", "--adapter", "two")
    said(capsys, "import", tmp_path / "merged", "--run_dir", tmp_path / "run")
    wanted = merged_weights(second, "two")
    for path, x in values(tmp_path / "run").items():
        np.testing.assert_allclose(x, wanted[path], atol=1e-6, err_msg=path)

    said(capsys, "export", second, tmp_path / "peft", "--peft", "--adapter", "two")
    said(capsys, "import", tmp_path / "peft", "--base", base, "--run_dir", tmp_path / "beside")
    again, own = values(tmp_path / "beside"), values(second)
    for path in (path for path in own if path.startswith("adapters/two/")):
        np.testing.assert_array_equal(again[path.replace("/two/", "/default/")], own[path], err_msg=path)


def merged_weights(run, name: str):
    config = config_file.load(run)
    mesh = sharding.make_mesh(config.parallel)
    tree, _ = load_weights(config, run, mesh, adapter=name)
    return params.paths(jax.device_get(merged(config, tree, mesh)))


# -------------------------------------------------------------------------------------------- names


def config_with(folder, adapters):
    return dataclasses.replace(config_file.load(runs.write(folder)), adapters=adapters)


SEVERAL = Several((Lora("one", rank=2), Lora("two", rank=2)))


def test_names_of_adapters(tmp_path):
    config = config_with(tmp_path, SEVERAL)
    assert chosen(config, "") == chosen(config, "two, one") == ("one", "two")
    assert chosen(config, "two") == ("two",)
    assert chosen(config_with(tmp_path, Lora("mine", rank=2)), "mine") == ("mine",)


@pytest.mark.parametrize(
    ("adapters", "name", "text"),
    [
        (SEVERAL, "tow", "--adapter = 'tow': the run's adapters are one, two.*two"),
        (SEVERAL, "one,", "--adapter = 'one,': the run's adapters are one, two"),
        (AdapterConfig(), "one", "--adapter = 'one': the run has no adapters; leave it out"),
    ],
)
def test_a_name_that_is_not_there_is_one_line_before_anything_is_read(adapters, name, text, tmp_path):
    config = config_with(tmp_path, adapters)
    (tmp_path / "checkpoints").mkdir()
    for verb in (evaluate_run, load):
        with pytest.raises(ValueError, match=text) as error:
            verb(config, tmp_path, adapter=name)
        assert "\n" not in str(error.value)


def load(config, folder, adapter):
    return load_weights(config, folder, sharding.make_mesh(config.parallel), adapter=adapter)


def test_a_peft_folder_holds_one_adapter(tmp_path):
    with pytest.raises(
        ValueError, match=r"has the adapters one, two, and a PEFT folder holds one; --adapter NAME says"
    ):
        export_adapters(config_with(tmp_path, SEVERAL), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
