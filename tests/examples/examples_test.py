"""The README's examples are these files, and they train."""

from pathlib import Path

import pytest

from bigmodel_jax import cli

HERE = Path(__file__).parent
README = (HERE.parents[1] / "README.md").read_text()
SMALL = ["--train.steps", "2", "--optim.warmup_steps", "0"]


@pytest.mark.parametrize("name", ["one_file_model.py", "own_flax_module.py"])
def test_the_readme_shows_the_file_whole(name):
    assert (HERE / name).read_text().strip() in README


def test_a_model_in_one_file_trains(tmp_path, monkeypatch):
    """On a small text of its own: the default one takes seconds to prepare."""
    text = tmp_path / "t.txt"
    text.write_text("we the people of the united states, in order to form a more perfect union. " * 400)
    source = ["--data.source.train", str(text), "--data.source.validation", str(text)]
    assert _train(tmp_path, _with_source(tmp_path, "one_file_model.py"), *source).is_file()


def test_a_flax_module_of_ones_own_trains(tmp_path):
    assert _train(tmp_path, HERE / "own_flax_module.py", "--train.batch_size", "64").is_file()


def _with_source(folder: Path, name: str) -> Path:
    """The example with its data read from plain files."""
    path = folder / name
    path.write_text((HERE / name).read_text() + FILES)
    return path


FILES = """

import dataclasses
from bigmodel_jax.data import TextFiles

_get_config = get_config

def get_config():
    config = _get_config()
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source=TextFiles()))
"""


def _train(folder: Path, config: Path, *args: str) -> Path:
    """Trains two steps; the report's path."""
    cli.main(["train", str(config), "--run_dir", str(folder / "run"), *SMALL, *args])
    return folder / "run" / "report.html"
