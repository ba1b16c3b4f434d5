"""What does not fit in memory is one line, before it is made, in every verb; the run's folder stays
free."""

import json
import re

import pytest

import runs
from bigmodel_jax import cli
from bigmodel_jax.core import device_memory
from bigmodel_jax.data import loader


def said(capsys, *args) -> str:
    """The one line of a command that is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main([str(x) for x in args])
    assert end.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert lines[-1].startswith("error: ")
    assert sum(line.startswith("error: ") for line in lines) == 1
    return lines[-1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The config file of a run."""
    return runs.write(tmp_path_factory.mktemp("fits"))


@pytest.fixture(scope="module")
def trained(tiny):
    """(folder of a run of 2 steps, the same weights as a Hugging Face folder)."""
    folder = tiny.parent
    cli.main(["train", str(tiny), "--run_dir", str(folder / "run"), "--train.steps", "2", *runs.BARE])
    cli.main(["export", str(folder / "run"), str(folder / "exported")])
    return folder / "run", folder / "exported"


def limit(monkeypatch, size: int) -> None:
    monkeypatch.setattr(device_memory, "host_memory", lambda: size)
    monkeypatch.setattr(loader, "host_memory", lambda: size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            ("--model.embed_dim", 10**9),
            r"the weights of LlamaConfig \([\d,]+ parameters\): [\d,.]+ GiB of memory needed",
        ),
        (("--model.embed_dim", 10**18), "GiB of memory needed"),
        (("--model.vocab_size", 10**12), "GiB of memory needed"),
        (("--model.num_layers", 10**9), "model.num_layers = 1000000000; it must be 1 or more and at most 10000"),
        (("--train.batch_size", 10**12), r"train.batch_size = 1000000000000: [\d,.]+ GiB of memory needed"),
        (("--eval.batch_size", 10**12), r"eval.batch_size = 1000000000000: [\d,.]+ GiB of memory needed"),
    ],
)
def test_a_size_beyond_any_host_is_refused_before_anything_is_made(tiny, tmp_path, capsys, options, match):
    line = said(capsys, "train", tiny, "--run_dir", tmp_path / "run", *options)
    assert re.search(match, line)
    assert not (tmp_path / "run").exists()


def test_a_state_that_does_not_fit_though_its_weights_do(tiny, tmp_path, capsys, monkeypatch):
    limit(monkeypatch, 2_000_000)  # 35,488 parameters of 4 bytes on 8 devices, and two moments each
    line = said(capsys, "train", tiny, "--run_dir", tmp_path / "run")
    assert "the train state of LlamaConfig" in line
    assert "hosts with parallel.fsdp" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_step_that_does_not_fit_leaves_the_folder_to_another_config(tiny, tmp_path, capsys, monkeypatch):
    options = ("--run_dir", tmp_path / "run", "--train.steps", 2, "--eval.baselines", "False")
    limit(monkeypatch, 3_450_000)  # the state has 3,406,944 bytes
    assert "the compiled step" in said(capsys, "train", tiny, *options)
    monkeypatch.undo()
    cli.main([str(x) for x in ("train", tiny, *options, "--optim.lr", 0.01)])
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2


@pytest.mark.slow
def test_every_verb_that_makes_weights_asks(trained, tmp_path, capsys, monkeypatch):
    run, exported = trained
    limit(monkeypatch, 50_000)
    for args in (
        ("train", run, "--train.steps", 3),
        ("eval", run),
        ("generate", run, "--prompt", "the "),
        ("export", run, tmp_path / "out"),
        ("import", exported, "--run_dir", tmp_path / "imported"),
    ):
        assert "of memory needed, and this host has" in said(capsys, *args), args
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "imported").exists()


def test_memory_that_ran_out_is_one_line(tiny, tmp_path, capsys, monkeypatch):
    def fails(*_, **__):
        raise MemoryError("Unable to allocate 5 TiB")

    monkeypatch.setattr("bigmodel_jax.training.run.train", fails)
    line = said(capsys, "train", tiny, "--run_dir", tmp_path / "run")
    assert line == "error: this host's memory is not enough (Unable to allocate 5 TiB)"
