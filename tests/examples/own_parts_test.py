"""Everything that a run is made of, from a folder outside the package; and the one place that lists
what ships."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import runs
from bigmodel_jax import cli

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "bigmodel_jax"


def digest() -> str:
    files = [path for path in sorted(PACKAGE.rglob("*")) if path.suffix in (".py", ".css", ".toml")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@pytest.mark.slow
def test_a_folder_of_ones_own_adds_every_part_and_touches_no_file_of_the_package(tmp_path, monkeypatch, capsys):
    """The parts are trained, resumed from the folder alone, evaluated, shown and compared. All
    commands run in that folder's parent."""
    shutil.copytree(HERE / "own_parts", tmp_path / "own_parts", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
    before = digest()

    experiment = ["train", "own_parts/experiment.py", "--run_dir"]
    cli.main([*experiment, "runs/a", "--train.steps", "4"])
    for module in [name for name in sys.modules if "own_parts" in name]:  # as a process of its own finds them
        monkeypatch.delitem(sys.modules, module)
    cli.main(["train", "runs/a", "--train.steps", "8"])
    cli.main([*experiment, "runs/b", "--optim.momentum", "0.5", "--objective.smoothing", "0"])
    assert sorted(runs.losses(Path("runs/a"))) == list(range(1, 9))
    saved = json.loads(Path("runs/a/config.json").read_text())
    assert saved["model"]["type"] == "own_parts.model:BigramConfig"
    assert saved["optim"]["type"] == "own_parts.optimizer:SignConfig"

    capsys.readouterr()
    cli.main(["eval", "runs/a", "--step", "best", "--json"])
    assert 0 < json.loads(capsys.readouterr().out)["eval/in_first_five"] <= 1
    for page in (["runs/a"], ["runs/a", "runs/b"]):
        cli.main(["report", *page, "--output", "page.html"])
        text = Path("page.html").read_text()
        assert "Target among the first five" in text
        assert re.search(r"\d+\.\d %", text)
    assert "momentum" in text
    assert "smoothing" in text
    assert digest() == before
