"""Functions of a config file as data: named in config.json, found again, held to the rules of trust
and of provenance."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from bigmodel_jax import config_file
from bigmodel_jax.core import trust, user_code
from bigmodel_jax.data.sources.sources import Arrays
from bigmodel_jax.training import provenance, run_folder

CONFIG = """
from bigmodel_jax.config import Config
from bigmodel_jax.data import Arrays, ImageData
from bigmodel_jax.models import MLPConfig
from bigmodel_jax.objectives import Classification

def make():
    return {{split: {{"image": [[1.0], [2.0]], "label": [0, 1]}} for split in ("train", "validation")}}

def get_config():
    return Config(MLPConfig(), Classification(), ImageData(source=Arrays({function}), num_classes=2))
"""


def write(folder, function="make"):
    folder.mkdir(exist_ok=True)
    path = folder / "mine.py"
    path.write_text(CONFIG.format(function=function))
    return path


@pytest.mark.parametrize("function", ["make", "'make'", "function='make'"])
def test_a_function_of_the_config_file_is_found_again_from_config_json(tmp_path, monkeypatch, function):
    path = write(tmp_path, function)
    config = config_file.load(path)
    assert config.data.source.function == f"{path}:make"
    config_file.save(config, tmp_path / "config.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, str(path))  # as in a new process
    (tmp_path / "run").mkdir()
    (tmp_path / "config.json").rename(tmp_path / "run" / "config.json")
    again = config_file.load(tmp_path / "run")
    assert again == config
    data = dataclasses.replace(again.data, cache_dir=str(tmp_path))
    assert data.open("train").labels.tolist() == [0, 1]
    assert provenance.code_files(again, None)["mine.py"] == path


def test_a_function_in_the_runs_folder_is_refused_from_either_copy_of_the_config(tmp_path, monkeypatch):
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "run"
    config = config_file.load(write(run_dir))
    monkeypatch.delitem(sys.modules, str(run_dir / "mine.py"))
    config_file.save(config, run_dir / "config.json")
    with pytest.raises(ValueError, match="make is defined in .* inside the run's folder"):
        run_folder.load(run_dir)
    (run_dir / "checkpoints").mkdir()
    node = json.loads((run_dir / "config.json").read_text())
    kept = {name: value for name, value in node.items() if name not in ("format", "version")}
    monkeypatch.setattr(run_folder.store, "read_config", lambda _: kept)
    (run_dir / "config.json").write_text("{")
    with pytest.raises(ValueError, match="make is defined in .* inside the run's folder"):
        run_folder.load(run_dir)
    assert str(run_dir / "mine.py") not in sys.modules


def test_a_misspelt_name_and_a_function_without_a_name_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"data\.source\.function = 'mak'.*perhaps you meant 'make'") as error:
        config_file.load(write(tmp_path / "a", "'mak'"))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"function.*lambda.* has no name of its own") as error:
        config_file.load(write(tmp_path / "b", "lambda: {}"))
    assert "\n" not in str(error.value)


def test_a_config_file_that_lies_elsewhere_now_names_the_same_function(tmp_path):
    config = config_file.load(write(tmp_path / "a"))
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    config_file.save(config, run_dir / "config.json")
    run_folder.check(run_dir, config_file.load(write(tmp_path / "b")))
    other = tmp_path / "b" / "other.py"
    other.write_text(CONFIG.format(function="make"))
    with pytest.raises(ValueError, match=r"data\.source\.function was"):
        run_folder.check(run_dir, config_file.load(other))


def test_every_function_that_a_config_names_is_listed():
    @dataclasses.dataclass(frozen=True)
    class Nested:
        sources: tuple = (Arrays("a:b"), Arrays("c:d"), Arrays())
        others: tuple[user_code.FunctionName, ...] = ("e:f",)

    assert sorted(user_code.functions(Nested())) == ["a:b", "c:d", "e:f"]


def messages():
    return {"train": {"messages": [[{"role": "user", "content": "a"}]], "box": [[1.0, [2.0]]]}}


def test_the_fingerprint_of_objects_is_their_content(tmp_path):
    """The bytes of an array of objects are addresses, which differ between processes."""
    first = Arrays(f"{__name__}:messages").fingerprint("train", tmp_path)
    keep = [np.empty(100, object) for _ in range(10)]
    assert Arrays(f"{__name__}:messages").fingerprint("train", tmp_path) == first
    assert len(keep) == 10
