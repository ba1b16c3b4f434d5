"""Opening somebody's run runs none of their code, unless the user says so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import runs
from bigmodel_jax import cli, config_file
from bigmodel_jax.core import trust

MODEL = """
from pathlib import Path
Path({mark!r}).write_text("executed")
import dataclasses
from bigmodel_jax.models import MLPConfig

@dataclasses.dataclass(frozen=True)
class Own(MLPConfig):
    pass

def load():
    Path({mark!r}).write_text("called")
    return {{}}
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """(run folder, mark): the folder's config.json is whole; the mark exists once the code beside
    it has run."""
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    run_dir, mark = tmp_path / "run", tmp_path / "mark"
    run_dir.mkdir()
    config_file.save(config_file.load(runs.write(tmp_path)), run_dir / "config.json")
    return run_dir, mark


def write_code(path: Path, mark: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MODEL.format(mark=str(mark)))


def change(run_dir: Path, **parts) -> None:
    path = run_dir / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def own(file: Path) -> dict:
    return {"type": f"{file}:Own"}


def refused(run_dir: Path) -> str:
    with pytest.raises(ValueError, match="--trust") as error:
        config_file.load(run_dir)
    return str(error.value)


def test_a_class_inside_the_runs_folder_is_refused_by_file_and_class(run):
    run_dir, mark = run
    write_code(run_dir / "model.py", mark)
    change(run_dir, model=own(run_dir / "model.py"))
    text = refused(run_dir)
    assert "Own" in text
    assert str(run_dir / "model.py") in text
    assert "inside the run's folder" in text
    assert not mark.exists()


def test_a_link_out_of_the_tree_into_the_runs_folder_is_no_way_around(run):
    run_dir, mark = run
    write_code(run_dir / "model.py", mark)
    (run_dir.parent / "mine.py").symlink_to(run_dir / "model.py")
    change(run_dir, model=own(run_dir.parent / "mine.py"))
    refused(run_dir)
    assert not mark.exists()


def test_a_class_outside_the_working_directory_is_refused(run, tmp_path_factory):
    run_dir, mark = run
    file = tmp_path_factory.mktemp("elsewhere") / "model.py"
    write_code(file, mark)
    change(run_dir, model=own(file))
    assert "outside the working directory" in refused(run_dir)
    assert not mark.exists()


def test_the_users_own_tree_is_trusted(run):
    run_dir, mark = run
    write_code(run_dir.parent / "mine" / "model.py", mark)
    change(run_dir, model=own(run_dir.parent / "mine" / "model.py"))
    assert type(config_file.load(run_dir).model).__name__ == "Own"
    assert mark.exists()


def test_the_option_trusts(run, monkeypatch, capsys):
    run_dir, mark = run
    write_code(run_dir / "model.py", mark)
    change(run_dir, model=own(run_dir / "model.py"))
    monkeypatch.setenv(trust.VARIABLE, "")  # undone after the test, whatever --trust makes of it
    with pytest.raises(SystemExit):
        cli.main(["eval", str(run_dir)])
    assert not mark.exists()
    with pytest.raises(SystemExit):
        cli.main(["eval", str(run_dir), "--trust"])
    assert mark.exists()
    assert "inside the run's folder" not in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("module", ["antigravity:X", "this:X", "not_there_at_all:X", "pip:X"])
def test_a_module_that_is_not_ours_is_not_even_imported(run, module):
    run_dir, _ = run
    change(run_dir, model={"type": module})
    refused(run_dir)
    assert module.partition(":")[0] not in sys.modules


@pytest.mark.parametrize("tag", ["os:abort", "posix:abort", "subprocess:run", "mine_in_run:load"])
def test_a_function_for_the_data_is_held_to_the_same_rule(run, tag):
    run_dir, mark = run
    write_code(run_dir / "mine_in_run.py", mark)
    sys.path.insert(0, str(run_dir))
    node = json.loads((run_dir / "config.json").read_text())
    node["data"]["source"] = {"type": "bigmodel_jax.data.sources:Arrays", "function": tag}
    change(run_dir, data=node["data"])
    refused(run_dir)
    assert not mark.exists()


@pytest.mark.parametrize("tag", ["", ":", ":X", ".x:Y", "x.:Y", "x", "a b:C", "..:X", "/:X", "x:Y:Z"])
def test_a_tag_that_names_no_class_is_one_line(run, tag):
    run_dir, _ = run
    change(run_dir, model={"type": tag})
    with pytest.raises(ValueError, match=r"config\.json") as error:
        config_file.load(run_dir)
    assert "\n" not in str(error.value)


def test_a_class_that_the_users_own_config_file_has_imported_needs_no_word(run, tmp_path_factory):
    """A run started from a config file elsewhere is resumed from there: its classes are in memory
    already."""
    run_dir, _ = run
    file = runs.write(tmp_path_factory.mktemp("elsewhere"))
    file.write_text(
        file.read_text() + "\nimport dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Own(Config): pass\n"
    )
    config_file.load(file)
    node = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(node | {"type": f"{file}:Own"}))
    assert type(config_file.load(run_dir)).__name__ == "Own"


def test_processes_that_are_started_inherit_the_users_word(monkeypatch):
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    monkeypatch.setenv(trust.VARIABLE, "")
    trust.allow()
    program = "from bigmodel_jax.core import trust; print(trust.allowed())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
