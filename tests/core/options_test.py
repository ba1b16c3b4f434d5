"""What the one parser makes of argv: values, the arguments that it leaves, and a line for every kind of mistake."""

import dataclasses
from typing import ClassVar, Literal

import pytest

from bigmodel_jax.core import options
from bigmodel_jax.core.ranges import Count


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
