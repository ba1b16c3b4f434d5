"""Where a run's folder is, by what the command line names; what verbs of several runs refuse."""

from pathlib import Path

import pytest

from bigmodel_jax.cli import main
from bigmodel_jax.verbs.base import run_dir_of

SMALL = Path(__file__).with_name("sweep") / "small_sweep.py"


def test_a_config_names_its_runs_folder_and_a_folder_names_itself(tmp_path):
    assert run_dir_of(Path("configs/lm_tiny.py")) == Path("runs/lm_tiny")
    assert run_dir_of(tmp_path) == tmp_path
    assert run_dir_of(tmp_path / "config.json") == tmp_path


@pytest.mark.parametrize("verb", ["sweep", "cross-validate", "find-rate"])
def test_a_verb_of_several_runs_is_not_given_the_folder_of_one(verb, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit) as caught:
        main([verb, str(SMALL), "--run_dir", str(tmp_path)])
    said = capsys.readouterr().err
    assert (caught.value.code, said) == (2, f"error: --run_dir {tmp_path}: a run is there; give a folder of its own\n")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_an_option_of_a_searched_field_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["sweep", str(SMALL), "--run_dir", str(tmp_path / "sweep"), "--optim.lr", "0.5"])
    assert capsys.readouterr().err == "error: --optim.lr 0.5: SPACE searches this field; leave the option out\n"
    assert not (tmp_path / "sweep").exists()
