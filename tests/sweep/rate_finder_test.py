"""Range tests of real configs: what they leave, what rises with the rate, and which configs they
refuse."""

import dataclasses
import json
import re
from pathlib import Path

import optax
import pytest
from rich.console import Console

from bigmodel_jax import config_file
from bigmodel_jax.cli import main
from bigmodel_jax.config import SpikeConfig
from bigmodel_jax.data.text.prompt_data import PromptData
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.optim.groups import Group
from bigmodel_jax.sweep import rate_finder
from bigmodel_jax.sweep.rate_finder import Span
from bigmodel_jax.training import fits

FILE = Path(__file__).with_name("small_sweep.py")
ROOT = Path(__file__).parents[2]
SPAN = Span(1e-5, 10.0, 60)
GROUPS = (Group("layers/0/.*", lr=5e-3, unfreeze=0.5), Group(".*bias", lr=0.0), Group("head/.*", weight_decay=0.0))


def config_of(**optim):
    config = config_file.load(FILE, ["--train.batch_size", "40"])
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, **optim))


def find(config, folder, span=SPAN):
    return rate_finder.find_rate(config, span, folder, Console(quiet=True), "a.py")


@pytest.mark.slow
def test_a_test_compiles_once_saves_nothing_and_says_its_rate(tmp_path, monkeypatch):
    compiled, compile_step = [], fits.compile_step
    monkeypatch.setattr(fits, "compile_step", lambda *args: compiled.append(1) or compile_step(*args))
    found = find(config_of(), tmp_path / "found")
    assert len(compiled) == 1, "one step serves all rates"
    assert sorted(p.name for p in (tmp_path / "found").iterdir()) == ["rate.html", "rate.json"]
    assert json.loads((tmp_path / "found/rate.json").read_text()) == found
    assert 1e-3 <= found["rate"] <= 0.3
    assert found["options"] == f"--optim.lr {found['rate']:.2g}"
    page = (tmp_path / "found/rate.html").read_text()
    assert f"launch.py train a.py {found['options']}" in page
    assert found["changed"] == {"optim.schedule": "cosine"}
    again = find(config_of(), tmp_path / "again")
    assert again["losses"] == found["losses"], "the same batches, weights and rates"


def test_the_rates_of_groups_rise_at_their_ratios():
    config = config_of(lr=1e-2, groups=GROUPS)
    fields = rate_finder.rate_fields(config)
    assert fields == {"optim.lr": 1.0, "optim.groups.0.lr": 0.5, "optim.groups.1.lr": 0.0}
    assert rate_finder.options(fields, 4e-3) == "--optim.lr 0.004 --optim.groups.0.lr 0.002 --optim.groups.1.lr 0"


def test_what_would_hide_a_rate_is_left_out_and_said():
    config = config_of(schedule="one_cycle", warmup_share=0.1, ema_decay=0.99, groups=GROUPS[:1])
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, spikes=SpikeConfig("skip")))
    own = rate_finder.of_test(config, 50)
    assert own.optim.schedule_fn(50)(0) == own.optim.schedule_fn(50)(49) == config.optim.lr
    assert (own.train.steps, own.train.spikes.action, own.optim.groups[0].unfreeze) == (50, "off", 0.0)
    names = [
        "optim.schedule",
        "optim.warmup_share",
        "optim.ema_decay",
        "optim.groups.0.unfreeze",
        "train.spikes.action",
    ]
    assert list(rate_finder.changed(config)) == names


@dataclasses.dataclass(frozen=True)
class Halved(OptimConfig):
    def schedule_fn(self, total_steps):
        return optax.constant_schedule(self.lr / 2)


@dataclasses.dataclass(frozen=True)
class Branching(OptimConfig):
    def transformation(self, rate, spec):
        return optax.sgd(rate) if self.lr > 1e-3 else optax.adam(rate)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optim", "message"),
    [
        (Halved(), "Halved trains at 5e-06 where the test gives optim.lr = 1e-05"),
        (Branching(), "Branching decides in Python by optim.lr"),
        (OptimConfig(lr=0.0, groups=GROUPS), "optim.lr = 0 with optim.groups.0.lr = 0.005"),
    ],
)
def test_an_optimizer_whose_rate_the_test_cannot_set_is_one_line(tmp_path, optim, message):
    with pytest.raises(ValueError, match=message) as caught:
        find(dataclasses.replace(config_of(), optim=optim), tmp_path)
    assert "\n" not in str(caught.value)


def test_prompts_alone_and_pmap_are_refused(tmp_path):
    with pytest.raises(ValueError, match="PromptData gives prompts"):
        rate_finder.check(dataclasses.replace(config_of(), data=PromptData()), SPAN)
    config = config_of()
    config = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, strategy="pmap"))
    with pytest.raises(ValueError, match="give --parallel.strategy jit"):
        find(config, tmp_path)


@pytest.mark.slow
def test_a_loss_that_no_rate_lowers_is_one_line_and_a_page(tmp_path):
    with pytest.raises(ValueError, match="no more than its noise between 1e-09 and 1e-08; see .*rate.html"):
        find(config_of(), tmp_path, Span(1e-9, 1e-8, 20))
    assert "no more than its noise" in (tmp_path / "rate.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lowest", "1", "--highest", "0.1"], "--lowest 1 is not below --highest 0.1"),
        (["--lowest", "0.5", "--highest", "0.5"], "--lowest 0.5 is not below --highest 0.5"),
        (["--steps", "19"], "steps = 19; it must be 20 or more"),
        (["--lowest", "0"], "lowest = 0.0; it must be above 0"),
        (["--higest", "1"], "perhaps you meant '--highest'"),
    ],
)
def test_bad_options_are_one_line(capsys, tmp_path, options, message):
    with pytest.raises(SystemExit) as caught:
        main(["find-rate", str(FILE), "--run_dir", str(tmp_path), *options])
    said = capsys.readouterr().err
    assert (caught.value.code, len(said.strip().splitlines())) == (2, 1)
    assert message in said


def test_the_suggested_command_repeats_the_options_of_the_config(monkeypatch, tmp_path):
    seen = []

    def find_rate(config, span, run_dir, console, command):
        seen.append(command)
        raise ValueError("seen")

    monkeypatch.setattr(rate_finder, "find_rate", find_rate)
    own = [
        "--train.batch_size",
        "8",
        "--lowest",
        "1e-5",
        "--data.cache_dir",
        "a folder",
        "--steps",
        "30",
        "--optim.lr=2",
    ]
    with pytest.raises(SystemExit):
        main(["find-rate", str(FILE), *own, "--run_dir", str(tmp_path)])
    assert seen == [f"{FILE} --train.batch_size 8 --data.cache_dir 'a folder' --optim.lr=2"]


@pytest.mark.exhaustive
def test_the_rate_of_the_digits_is_within_a_decade_of_the_known_one_and_trains(capsys, tmp_path):
    config = str(ROOT / "configs/mnist_mlp.py")
    main(["find-rate", config, "--run_dir", str(tmp_path / "rate")])
    said = capsys.readouterr().out
    rate = float(re.search(r"Suggested: --optim\.lr (\S+)", said)[1])
    assert 2e-4 < rate < 2e-2, said
    short = ["--train.steps", "300", "--optim.warmup_steps", "20", "--optim.lr", str(rate)]
    main(["train", config, "--run_dir", str(tmp_path / "run"), *short])
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval/accuracy"] > 0.93
