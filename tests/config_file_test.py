"""Configs as files: Python, JSON, a user's own classes."""

import dataclasses
import importlib
import json
import math
import re
import shutil
from pathlib import Path

import pytest

import runs
from bigmodel_jax import cli, config_file
from bigmodel_jax.config import Config, flat, override
from bigmodel_jax.core import dataclass_json, formats
from bigmodel_jax.data import Arrays, ChatData, TableFiles, TextData
from bigmodel_jax.data.tabular import Tables, TabularData
from bigmodel_jax.data.text.text_classification import LabelledLines, TextClassificationData
from bigmodel_jax.models import CLIPConfig, LlamaConfig, MLPConfig, T5Config, compute
from bigmodel_jax.models.clip import VisionTower
from bigmodel_jax.objectives import Classification, NextToken
from bigmodel_jax.optim import OptimConfig

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
EXAMPLES = sorted(p for p in (Path(__file__).parent / "examples").glob("*.py") if not p.stem.endswith("_test"))


@pytest.mark.parametrize("path", [*CONFIGS, *EXAMPLES], ids=lambda p: p.stem)
def test_a_config_survives_json(path, tmp_path):
    config = config_file.load(path)
    config_file.save(config, tmp_path / "config.json")
    assert config_file.load(tmp_path / "config.json") == config
    assert config_file.load(tmp_path) == config


@pytest.mark.parametrize("value", [None, True, 1, 1.5, 1e-8, "text", (1, 2), ((1,), ("a", None))])
def test_values_survive_json(value):
    again = config_file.from_json(json.loads(json.dumps(config_file.to_json(value))))
    assert again == value
    assert type(again) is type(value)


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="function"):
        config_file.to_json(dataclasses.replace(Arrays(), function=lambda: 0))


def test_load_applies_overrides_to_every_kind_of_file(tmp_path):
    path = runs.write(tmp_path)
    config_file.save(config_file.load(path), tmp_path / "config.json")
    for source in (path, tmp_path / "config.json", tmp_path):
        assert config_file.load(source, ["--train.steps", "7"]).train.steps == 7


def bad_json(tmp_path, change) -> str:
    """The message for a config.json changed by `change`."""
    node = config_file.to_json(config_file.load(runs.write(tmp_path)))
    change(node)
    (tmp_path / "config.json").write_text(json.dumps(node))
    with pytest.raises(ValueError, match=r"config\.json") as error:
        config_file.load(tmp_path)
    return str(error.value)


def test_an_unknown_field_of_config_json_is_named_with_the_nearest(tmp_path):
    text = bad_json(tmp_path, lambda c: c["train"].update(batchsize=4))
    assert "TrainConfig" in text
    assert "'batchsize' (perhaps you meant 'batch_size')" in text


def test_a_missing_field_of_config_json_is_named(tmp_path):
    assert "Config lacks objective" in bad_json(tmp_path, lambda c: c.pop("objective"))


def test_an_unknown_type_of_config_json_is_named_with_the_nearest(tmp_path):
    text = bad_json(tmp_path, lambda c: c["model"].update(type="bigmodel_jax.models.llama:LamaConfig"))
    assert "LamaConfig" in text
    assert "'LlamaConfig'" in text


def test_a_config_class_whose_file_is_gone_is_named(tmp_path):
    text = bad_json(tmp_path, lambda c: c["model"].update(type=f"{tmp_path}/gone.py:MyConfig"))
    assert "MyConfig" in text
    assert "gone.py" in text


def test_config_json_can_name_nothing_but_dataclasses(tmp_path):
    """A tag cannot call an arbitrary function."""
    assert "unknown" in bad_json(tmp_path, lambda c: c.update(model={"type": "os:system", "command": "true"}))


# ----------------------------------------------------------------------------- a model of one's own


def small(tmp_path, example: Path, data: str, **fields) -> Path:
    """The example as it stands, with other data and sizes: a file that imports nothing from it."""
    path = tmp_path / example.name
    text = example.read_text().replace("def get_config()", "def example_config()")
    path.write_text(
        f"{text}\n\nfrom bigmodel_jax.data import *\n\ndef get_config():\n    config = example_config()\n"
        f"    model = dataclasses.replace(config.model, **{fields})\n"
        f"    return dataclasses.replace(config, model=model, data={data})\n"
    )
    return path


FEW = (
    "--train.batch_size",
    "8",
    "--train.log_every",
    "1",
    "--eval.baselines",
    "False",
    "--eval.sample.max_tokens",
    "1",
)


def train_two_steps(path: Path, run_dir: Path) -> None:
    """Trains, evaluates and resumes from config.json alone."""
    steps = ["--optim.warmup_steps", "1", *FEW]
    cli.main(["train", str(path), "--run_dir", str(run_dir), "--train.steps", "2", *steps])
    cli.main(["train", str(run_dir), "--train.steps", "3"])
    assert sorted(runs.losses(run_dir)) == [1, 2, 3]
    assert all(map(math.isfinite, runs.losses(run_dir).values()))
    cli.main(["eval", str(run_dir)])


def bytes_of_text(tmp_path) -> str:
    texts = runs.write(tmp_path).parent
    return (
        f"TextData(source=TextFiles({str(texts / 'train.txt')!r}, {str(texts / 'validation.txt')!r}), "
        f"tokenizer=TokenizerConfig('bytes'), seq_len=16, cache_dir={str(tmp_path / 'cache')!r})"
    )


@pytest.mark.slow
def test_a_model_in_one_file_trains_and_is_found_again_from_config_json(tmp_path, capsys):
    example = Path(__file__).parent / "examples" / "one_file_model.py"
    path = small(tmp_path, example, bytes_of_text(tmp_path), vocab_size=264, hidden_dim=16, embed_dim=8)
    run_dir = tmp_path / "run"
    train_two_steps(path, run_dir)
    assert flat(config_file.load(run_dir))["model"] == "NgramConfig"
    assert json.loads((run_dir / "config.json").read_text())["model"]["type"] == f"{path}:NgramConfig"
    assert "eval/bits_per_byte" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_an_optimizer_of_ones_own_trains_and_is_found_again_from_config_json(tmp_path, capsys):
    """The config has an optax transformation in one line, a schedule in another, and groups. It is
    read back, and its own field is an option."""
    example = Path(__file__).parent / "examples" / "own_optimizer.py"
    path = small(
        tmp_path,
        example,
        bytes_of_text(tmp_path),
        vocab_size=264,
        embed_dim=16,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        mlp_dim=16,
    )
    run_dir = tmp_path / "run"
    cli.main(["train", str(path), "--run_dir", str(run_dir), "--optim.half_life", "1", *FEW, "--train.steps", "2"])
    shown = capsys.readouterr().out
    assert re.search(r"embed/\.\* +1 +4,224 +\S+% +frozen", shown), shown
    cli.main(["train", str(run_dir), "--train.steps", "3"])
    written = json.loads((run_dir / "config.json").read_text())["optim"]
    assert (written["type"], written["half_life"]) == (f"{path}:CentralizedConfig", 1.0)
    records = [r for r in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()) if "learning_rate" in r]
    assert [r["learning_rate"] for r in records] == pytest.approx([3e-3, 1.5e-3, 0.75e-3])
    assert [r["learning_rate/layers/attn"] for r in records] == pytest.approx([1e-3, 0.5e-3, 0.25e-3])


@pytest.mark.slow
def test_a_block_of_ones_own_trains_resumes_and_runs_in_a_pipeline_of_either_schedule(tmp_path):
    example = Path(__file__).parent / "examples" / "own_block.py"
    sizes = {"num_layers": 4, "embed_dim": 16, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8, "mlp_dim": 16}
    path = small(tmp_path, example, bytes_of_text(tmp_path), vocab_size=264, **sizes)
    first = tmp_path / "first"
    cli.main(["train", str(path), "--run_dir", str(first), "--train.steps", "1", "--optim.warmup_steps", "1", *FEW])
    assert json.loads((first / "config.json").read_text())["model"]["type"] == f"{path}:PrimerConfig"
    layouts = {"plain": (), "gpipe": ("--parallel.stage", "2")}
    layouts["1f1b"] = (*layouts["gpipe"], "--parallel.pipeline_schedule", "1f1b")
    losses = {}
    for name, layout in layouts.items():
        run_dir = shutil.copytree(first, tmp_path / name)
        cli.main(["train", str(run_dir), "--train.steps", "3", *layout])
        losses[name] = runs.losses(run_dir)
    assert sorted(losses["plain"]) == [1, 2, 3]
    for name in layouts:
        assert losses[name] == pytest.approx(losses["plain"], rel=1e-5)


@pytest.mark.slow
def test_a_flax_module_of_ones_own_trains(tmp_path, capsys):
    example = Path(__file__).parent / "examples" / "own_flax_module.py"
    source = "Tfds('mnist_5k', train_split='train[:64]', eval_split='validation[:16]')"
    data = f"ImageData(source={source}, cache_dir={str(tmp_path)!r})"
    train_two_steps(small(tmp_path, example, data, width=8), tmp_path / "run")
    assert "eval/macro_f1" in capsys.readouterr().out


RENAMED = [
    (TabularData, {"path": "a.csv", "validation_path": "b.csv"}, TabularData(source=Tables("a.csv", "b.csv"))),
    (ChatData, {"train_path": "a", "validation_path": "b"}, ChatData(source=TableFiles("a", "b"))),
    (
        TextClassificationData,
        {"train_path": "a", "test_path": "b"},
        TextClassificationData(source=LabelledLines("a", "", "b")),
    ),
]
RENAMED += [(cls, {name.removesuffix("_path"): v for name, v in old.items()}, now) for cls, old, now in RENAMED[1:]]
RENAMED += [(TabularData, {"train": "sklearn:diabetes", "validation": ""}, TabularData())]


@pytest.mark.parametrize(("cls", "old", "now"), RENAMED)
def test_a_run_of_before_a_field_was_renamed_still_opens(cls, old, now):
    kept = {k: v for k, v in config_file.to_json(now).items() if k != "source"}
    assert config_file.from_json(kept | old) == now


@pytest.mark.parametrize(("cls", "old", "now"), RENAMED)
def test_an_options_old_name_is_one_line_with_the_new_one(cls, old, now):
    base = Config(MLPConfig(), Classification(), now)
    first, second = old  # one in each of the two ways to write an option
    for name, args in ((first, [f"--data.{first}", "x"]), (second, [f"--data.{second.replace('_', '-')}=x"])):
        with pytest.raises(ValueError, match=rf"^--data\.[\w-]+ is now called --data\.{cls.RENAMED[name]}$"):
            override(base, args)


def test_a_python_files_old_name_is_one_line_with_the_new_one(tmp_path):
    path = tmp_path / "old.py"
    path.write_text(
        "from bigmodel_jax.data.tabular import TabularData\ndef get_config():\n    return TabularData(path='a')\n"
    )
    with pytest.raises(ValueError, match=r"it is now called 'source\.train'"):
        config_file.load(path)


COMPUTE = {"remat": "full", "unroll": True, "attention": "plain"}
BEFORE_COMPUTE = {  # before these fields were a part of their own
    "decoder": (LlamaConfig.tiny(), COMPUTE),
    "without a choice of attention": (T5Config.tiny(), {"remat": "dots", "unroll": True}),
    "tower": (VisionTower(patch_size=4), COMPUTE),
    "one of them": (LlamaConfig.tiny(), {"attention": "chunked"}),
}


@pytest.mark.parametrize("case", BEFORE_COMPUTE)
def test_a_config_json_from_before_compute_was_a_part_opens_with_its_values(case):
    now, fields = BEFORE_COMPUTE[case]
    old = {k: v for k, v in config_file.to_json(now).items() if k != "compute"} | fields
    assert config_file.from_json(old) == compute.changed(now, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"remat": "ful"}, r"Compute.remat = 'ful'; allowed: .* \(perhaps you meant 'full'\)"),
        ({"remat": ["full"]}, r"Compute.remat = \('full',\)"),
        ({"unroll": 1}, "Compute.unroll = 1 is of type int; it must be true or false"),
    ],
)
def test_what_an_old_field_cannot_hold_is_one_line(fields, message):
    old = {k: v for k, v in config_file.to_json(LlamaConfig.tiny()).items() if k != "compute"} | fields
    with pytest.raises(ValueError, match=message) as error:
        config_file.from_json(old)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "option", "new"),
    [
        (LlamaConfig.tiny(), "--model.remat", "--model.compute.remat"),
        (LlamaConfig.tiny(), "--model.unroll=True", "--model.compute.unroll"),
        (CLIPConfig.tiny(), "--model.text.attention", "--model.text.compute.attention"),
    ],
)
def test_an_option_from_before_compute_was_a_part_is_one_line_with_the_new_one(model, option, new):
    with pytest.raises(ValueError, match=rf"^{option.split('=')[0]} is now called {new}$"):
        override(Config(model, NextToken(), TextData()), [option, "full"])


@pytest.mark.parametrize(
    "made", ["LlamaConfig(remat='full')", "dataclasses.replace(PRESETS['llama-7b'], remat='full')"]
)
def test_a_python_file_from_before_compute_was_a_part_is_told_the_new_name(made, tmp_path):
    path = tmp_path / "old.py"
    head = "import dataclasses\nfrom bigmodel_jax.models.llama import LlamaConfig, PRESETS\n"
    path.write_text(f"{head}def get_config():\n    return {made}\n")
    with pytest.raises(
        ValueError, match=r"now called 'compute.remat', as in compute=Compute\(remat=...\)\) \(line 4 of"
    ):
        config_file.load(path)


def test_a_model_of_ones_own_that_reads_an_old_name_is_told_the_new_one():
    with pytest.raises(AttributeError, match=r"^LlamaConfig.unroll is now called 'compute.unroll'$"):
        LlamaConfig.tiny().unroll  # noqa: B018
    assert not hasattr(LlamaConfig.tiny(), "remat")


def test_a_field_of_ones_own_of_an_old_name_stays_its_own():
    own = Own(remat="mine")
    assert config_file.from_json(config_file.to_json(own)) == own
    config = override(Config(own, NextToken(), TextData()), ["--model.remat", "other"])
    assert config.model == Own(remat="other")


@dataclasses.dataclass(frozen=True)
class Own(LlamaConfig):
    remat: str = ""


def test_a_config_json_from_before_optim_was_a_folder_still_opens():
    now = OptimConfig(lr=1e-2, warmup_steps=3)
    new = {"warmup_share", "decay_share", "drops", "plateau", "groups"}
    old = {k: v for k, v in config_file.to_json(now).items() if k not in new}
    assert config_file.from_json(old | {"type": "bigmodel_jax.optim:OptimConfig"}) == now


@pytest.mark.parametrize("folder", formats.MOVED)
def test_a_config_json_from_before_a_file_of_data_moved_finds_its_classes(folder):
    for name in formats.MOVED[folder]:
        module = importlib.import_module(f"bigmodel_jax.data.{folder}.{name}")
        classes = [c for c in vars(module).values() if dataclasses.is_dataclass(c) and c.__module__ == module.__name__]
        assert classes
        for cls in classes:
            assert dataclass_json.find_class(f"bigmodel_jax.data.{name}:{cls.__name__}", None) is cls
