"""What the one parser makes of argv: values, the arguments that it leaves, and a line for every
kind of mistake."""

import dataclasses
from typing import ClassVar, Literal

import pytest

from bigmodel_jax.config import Config
from bigmodel_jax.core import options
from bigmodel_jax.core.ranges import Count
from bigmodel_jax.data import ChatData


@dataclasses.dataclass(frozen=True)
class Optimizer:
    RENAMED: ClassVar = {"momentum": "betas"}

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    name: Literal["adam", "sgd"] = "adam"
    nesterov: bool = False

    def __post_init__(self):
        if self.lr == 7:
            raise ValueError("seven is\nno rate")


@dataclasses.dataclass(frozen=True)
class Run:
    optim: Optimizer = Optimizer()
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Verb:
    config: options.Unnamed = None
    json: bool = False
    num_samples: Count = 1
    paths: tuple[str, ...] = ()


def parse(*args: str) -> Verb:
    return options.parse(Verb(Run()), args, "launch.py verb")


def test_a_verbs_flag_stands_alone_and_a_configs_takes_a_value():
    found = parse("--json", "--optim.nesterov", "True", "--optim.lr=2", "--num-samples", "3", "--seed", "None")
    assert found == Verb(Run(Optimizer(lr=2.0, nesterov=True)), json=True, num_samples=3)


def test_what_names_no_field_is_left_as_it_was_typed():
    args = ["c.py", "--optim.lr", "1", "--json", "--optim.betas", "0.1", "0.2", "--num_samples=2", "--help"]
    found, rest = options.parse_known(Verb(), args, "launch.py verb")
    assert found == Verb(json=True, num_samples=2)
    assert rest == ["c.py", "--optim.lr", "1", "--optim.betas", "0.1", "0.2", "--help"]


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("--optim.lrr 1", "Unrecognized options: --optim.lrr 1 (perhaps you meant '--optim.lr')"),
        ("--num-sample 1", "Unrecognized options: --num-sample 1 (perhaps you meant '--num_samples')"),
        ("--lr 1", "Unrecognized options: --lr 1 (perhaps you meant '--optim.lr')"),
        ("--quite_another 1", "Unrecognized options: --quite_another 1; --help lists every option"),
        ("--optim.betas 1 2 3", "Unrecognized options: 3; --help lists every option"),
        ("--optim.momentum 1", "--optim.momentum is now called --optim.betas"),
        ("--optim.lr many", "--optim.lr = 'many'; expected FLOAT"),
        ("--seed=1.5", "--seed = '1.5'; expected {None}|INT"),
        ("--optim.betas 1 a", "--optim.betas = '1' 'a'; expected FLOAT FLOAT"),
        ("--optim.betas 1", "--optim.betas: its value is missing; expected 2 values, FLOAT FLOAT"),
        ("--optim.lr", "--optim.lr: its value is missing; expected 1 values, FLOAT"),
        ("--optim.name adams", "--optim.name = 'adams'; allowed: 'adam', 'sgd' (perhaps you meant 'adam')"),
        ("--optim.nesterov yes", "--optim.nesterov = 'yes'; allowed: 'True', 'False'"),
        ("--optim.lr 7", "seven is no rate"),
        ("--num_samples 0", "num_samples = 0; it must be 1 or more"),
        ("--optim.lr nan", "optim.lr = nan; it must be a finite number"),
    ],
)
def test_a_mistake_is_one_line(args, line, capsys):
    with pytest.raises(ValueError) as error:
        parse(*args.split())
    assert str(error.value) == line
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("config", [ChatData, ChatData(seq_len=77)])
def test_the_fields_of_a_config_are_printed_with_default_and_comment(config, capsys):
    options.print_fields(config)
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "usage: ChatData" in said
    assert f"--seq_len INT tokens of a row (default: {getattr(config, 'seq_len', 1024)})" in said
    assert "--source.train STR paths or glob patterns of the training files, comma-separated (default: '')" in said


def test_a_class_without_defaults_prints_its_fields_from_an_instance_only():
    with pytest.raises(ValueError, match=r"^Config has fields without a default \(.*'model'.*\); give an instance$"):
        options.print_fields(Config)
