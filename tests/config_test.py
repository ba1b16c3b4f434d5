"""Overrides, checks and the flat form of a config."""

import dataclasses

import pytest

from bigmodel_jax import config as configs
from bigmodel_jax.config import Config, EvalConfig, ReportConfig, SampleConfig, TrainConfig, flat, override
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.data import ImageData, TextData
from bigmodel_jax.models import MODELS, CNNConfig, Compute, GPT2Config, LlamaConfig, MLPConfig
from bigmodel_jax.objectives import OBJECTIVES, Classification, NextToken
from bigmodel_jax.optim import OptimConfig

BASE = Config(LlamaConfig.tiny(), NextToken(), TextData(seq_len=16))


@pytest.mark.parametrize(
    ("args", "read", "value"),
    [
        ("--optim.lr 5e-4", lambda c: c.optim.lr, 5e-4),
        ("--optim.lr 1", lambda c: c.optim.lr, 1.0),
        ("--train.batch_size 64", lambda c: c.train.batch_size, 64),
        ("--train.batch-size 64", lambda c: c.train.batch_size, 64),
        ("--model.num-layers=3", lambda c: c.model.num_layers, 3),
        ("--model.tied_embeddings True", lambda c: c.model.tied_embeddings, True),
        ("--report.tensorboard False", lambda c: c.report.tensorboard, False),
        ("--optim.betas 0.8 0.9", lambda c: c.optim.betas, (0.8, 0.9)),
        ("--optim.name lion", lambda c: c.optim.name, "lion"),
        ("--report.trackers wandb mlflow", lambda c: c.report.trackers, ("wandb", "mlflow")),
        ("--parallel.rules.embed None", lambda c: c.parallel.rules.embed, None),
        ("--parallel.rules.embed data fsdp", lambda c: c.parallel.rules.embed, ("data", "fsdp")),
        ("--data.source.train_split train[:1%]", lambda c: c.data.source.train_split, "train[:1%]"),
        ("--eval.sample.prompt -", lambda c: c.eval.sample.prompt, "-"),
    ],
)
def test_an_override_replaces_one_field_with_its_declared_type(args, read, value):
    changed = override(BASE, args.split())
    assert read(changed) == value
    assert type(read(changed)) is type(value)
    before, after = flat(BASE), flat(changed)
    assert [name for name in before if before[name] != after[name]] == [
        args.split()[0][2:].split("=")[0].replace("-", "_")
    ]


def test_overrides_keep_the_subclasses_that_a_config_chose():
    changed = override(Config(MLPConfig(), Classification(), ImageData()), ["--model.hidden_dims", "8", "4", "2"])
    assert changed.model == MLPConfig(hidden_dims=(8, 4, 2))
    assert type(changed.data) is ImageData


def test_no_override_changes_nothing():
    assert override(BASE, []) == BASE


def test_flat_names_every_field_once_and_the_class_of_every_part():
    names = flat(BASE)
    assert names["model"] == "LlamaConfig"
    assert names["data.source"] == "Tfds"
    assert names["optim.betas"] == OptimConfig().betas
    for name in names:
        value = BASE
        for part in name.split("."):
            value = BASE if part == "config" else getattr(value, part)
        assert dataclasses.is_dataclass(value) or value == names[name]


def replaced(**parts):
    return dataclasses.replace(BASE, **parts)


BAD = {
    "model": (replaced(model="lama"), ("config.model = 'lama'", "ModelConfig", "LlamaConfig", "'llama'")),
    "objective": (replaced(objective="nexttoken"), ("config.objective", "Objective", "NextToken", "'next_token'")),
    "data": (replaced(data=3), ("config.data = 3", "DataConfig")),
    "steps": (replaced(train=TrainConfig(steps=0)), ("train.steps = 0", "1 or more")),
    "float steps": (replaced(train=TrainConfig(steps=1e3)), ("train.steps = 1000.0", "float", "a whole number")),
    "bool steps": (replaced(train=TrainConfig(steps=True)), ("train.steps = True", "bool", "a whole number")),
    "text lr": (replaced(optim=OptimConfig(lr="1e-3")), ("optim.lr = '1e-3'", "str", "a number")),
    "choice": (replaced(optim=OptimConfig(name="adamww")), ("optim.name = 'adamww'", "'sgd'", "meant 'adamw'")),
    "choice in a tuple": (
        replaced(report=ReportConfig(trackers=("wand",))),
        ("report.trackers", "'wand'", "meant 'wandb'"),
    ),
    "betas": (replaced(optim=OptimConfig(betas=(0.9, 1.0))), ("optim.betas = 1.0", "0 or more and below 1")),
    "ema": (replaced(optim=OptimConfig(ema_decay=1.5)), ("optim.ema_decay = 1.5", "0 or more and below 1")),
    "rule": (
        replaced(parallel=ParallelConfig(rules=Rules(mlp="tensr"))),
        ("parallel.rules.mlp", "'tensr'", "'tensor'"),
    ),
    "rule in a tuple": (
        replaced(parallel=ParallelConfig(rules=Rules(batch=("data", "fsd")))),
        ("parallel.rules.batch", "'fsd'", "meant 'fsdp'"),
    ),
    "two open axes": (replaced(parallel=ParallelConfig(fsdp=-1)), ("data=-1", "fsdp=-1", "at most one")),
    "kv heads": (
        replaced(model=LlamaConfig.tiny().__class__(num_heads=6, num_kv_heads=4)),
        ("num_heads = 6", "num_kv_heads = 4"),
    ),
    "no layers": (replaced(model=GPT2Config(num_layers=0)), ("model.num_layers = 0", "1 or more")),
    "heads of an embedding": (
        replaced(model=GPT2Config(num_heads=7)),
        ("model.num_heads = 7", "model.embed_dim = 768"),
    ),
    "too many stages": (replaced(model=CNNConfig(channels=(4,) * 6)), ("model.channels", "28 pixels")),
    "no classes": (replaced(model=MLPConfig(num_classes=0)), ("model.num_classes = 0", "1 or more")),
    "a size of zero": (replaced(model=CNNConfig(hidden_dim=0)), ("model.hidden_dim = 0", "1 or more")),
    "mode": (
        replaced(checkpoint=configs.CheckpointConfig(best_metric="eval/accuracy")),
        ("checkpoint.best_mode = 'min', but more of eval/accuracy is better", "--checkpoint.best_mode max"),
    ),
    "metric": (
        replaced(checkpoint=configs.CheckpointConfig(best_metric="accuracy")),
        ("checkpoint.best_metric = 'accuracy'", "NextToken", "perhaps you meant 'eval/accuracy'"),
    ),
    "local saves nowhere": (
        replaced(checkpoint=configs.CheckpointConfig(local_every=5)),
        ("checkpoint.local_every = 5 needs a folder", "--checkpoint.local_dir "),
    ),
    "local saves never": (
        replaced(checkpoint=configs.CheckpointConfig(local_dir="/fast")),
        ("checkpoint.local_dir = '/fast' needs the number of steps", "--checkpoint.local_every 20"),
    ),
    "pmap": (replaced(parallel=ParallelConfig(strategy="pmap", data=1, tensor=8)), ("tensor",)),
    "sequence": (
        replaced(data=TextData(seq_len=100), parallel=ParallelConfig(data=1, seq=8)),
        ("data.seq_len = 100", "parallel.seq = 8"),
    ),
    "heads for the sequence": (
        replaced(data=TextData(seq_len=64), parallel=ParallelConfig(data=1, seq=8, context="ulysses")),
        ("model.num_heads = 4", "parallel.seq = 8", "'ulysses'", "'ring'"),
    ),
    "heads for the sequence and tensor": (
        replaced(data=TextData(seq_len=64), parallel=ParallelConfig(seq=4, tensor=2, context="ulysses")),
        ("model.num_heads = 4", "parallel.seq = 4 x parallel.tensor = 2"),
    ),
    "a kernel in a ring": (
        replaced(
            model=dataclasses.replace(LlamaConfig.tiny(), compute=Compute(attention="splash")),
            parallel=ParallelConfig(seq=2),
        ),
        ("model.compute.attention = 'splash'", "parallel.context = 'ulysses'", "'chunked'"),
    ),
    "context": (
        replaced(parallel=ParallelConfig(context="rign")),
        ("parallel.context = 'rign'", "'ring', 'ulysses'", "meant 'ring'"),
    ),
    "attention": (
        replaced(model=dataclasses.replace(LlamaConfig.tiny(), compute=Compute(attention="flash"))),
        ("model.compute.attention = 'flash'", "'splash'", "'cudnn'"),
    ),
    "batch": (replaced(train=TrainConfig(batch_size=12)), ("train.batch_size = 12", "8 data shards")),
    "evaluation batch": (replaced(eval=EvalConfig(batch_size=12)), ("eval.batch_size = 12", "8 data shards")),
    "microbatches": (replaced(train=TrainConfig(batch_size=8, microbatches=2)), ("= 8", "train.microbatches = 2")),
}


@pytest.mark.parametrize("name", BAD)
def test_validate_names_the_option_its_value_and_what_is_allowed(name):
    config, says = BAD[name]
    with pytest.raises(ValueError, match=r"=|shape|axes") as error:
        validate(config, num_devices=8)
    text = str(error.value)
    assert "\n" not in text
    assert [part for part in says if part not in text] == [], text


@pytest.mark.parametrize(
    "config",
    [
        BASE,
        replaced(train=TrainConfig(batch_size=16, microbatches=2)),
        replaced(parallel=ParallelConfig(data=2, fsdp=2, tensor=2)),
        replaced(parallel=ParallelConfig(data=8, strategy="pmap"), optim=OptimConfig(weight_decay=0, lr=1)),
        replaced(eval=EvalConfig(sample=SampleConfig(prompt="a"))),
    ],
)
def test_validate_lets_through_what_works(config):
    validate(config, num_devices=8)


def test_a_subclass_of_a_part_that_nobody_would_use_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Epochs(TrainConfig):
        epochs: int = 5

    with pytest.raises(
        ValueError, match=r"config\.train is a Epochs; it must be TrainConfig itself.*optim and adapters may"
    ):
        validate(replaced(train=Epochs()))


def test_every_config_says_what_it_is():
    """`help(LlamaConfig)` begins with a sentence; a dataclass without a docstring shows its
    signature instead."""
    parts = [c for c in vars(configs).values() if dataclasses.is_dataclass(c)]
    classes = {c for c in (*MODELS.values(), *OBJECTIVES.values(), *parts) for c in c.__mro__ if c is not object}
    assert not [c.__name__ for c in classes if not c.__doc__ or c.__doc__.startswith(f"{c.__name__}(")]
