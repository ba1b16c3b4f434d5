import dataclasses
import sqlite3

import optuna
import pytest
from optuna.trial import TrialState

from bigmodel_jax.sweep import study as studies
from bigmodel_jax.sweep.space import choice, integers, log, uniform
from bigmodel_jax.sweep.study import Search

SPACE = {"rate": log(1e-4, 1.0), "decay": uniform(0.0, 0.5), "size": integers(1, 9), "kind": choice("a", (1, 2))}
SEARCH = Search("eval/loss", "minimize")
DEFINITION = {"optim.eps": "1e-08", "--seed": "0"}


def open_(folder, kind="journal", search=SEARCH, **changes):
    return studies.open_study(folder, kind, search, DEFINITION | changes)


def loss(values) -> float:
    return abs(values["rate"] - 0.01) + values["decay"] * values["size"]


@pytest.mark.parametrize("kind", ["journal", pytest.param("sqlite", marks=pytest.mark.exhaustive)])
def test_a_study_that_is_opened_anew_draws_what_it_would_have_drawn(tmp_path, kind):
    """The study is opened anew after every trial, in the middle of a trial that has some of its
    values, and before a trial's first value."""
    drawn = []
    for broken in (False, True):
        (folder := tmp_path / f"{kind}-{broken}").mkdir()
        study = open_(folder, kind)
        for number in range(13):  # beyond the ten that TPE draws at random
            if broken:
                left = study.ask()
                if number % 2:
                    study.sampler = optuna.samplers.RandomSampler(seed=99)
                study = open_(folder, kind)
                running = study.get_trials(states=(TrialState.RUNNING,))[0]
                assert running.number == left.number
                trial = studies.take(study, SPACE, SEARCH, running)
            else:
                trial = studies.take(study, SPACE, SEARCH)
            study.tell(trial, loss(trial.params))
        drawn.append([trial.params for trial in study.trials])
    assert drawn[0] == drawn[1]
    assert len({repr(values) for values in drawn[0]}) == 13


def test_a_trial_that_has_some_values_keeps_them_and_gets_the_rest(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = studies.take(open_(tmp_path / "a"), SPACE, SEARCH)
    study = open_(tmp_path / "b")
    studies.take(study, {"rate": SPACE["rate"]}, SEARCH)  # killed after its first value
    study = open_(tmp_path / "b")
    assert studies.take(study, SPACE, SEARCH, study.trials[0]).params == whole.params


def test_another_seed_draws_other_values(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = SEARCH, dataclasses.replace(SEARCH, seed=1)
    a = studies.take(open_(tmp_path / "a"), SPACE, first).params
    assert studies.take(open_(tmp_path / "b"), SPACE, second).params["rate"] != a["rate"]


def test_a_line_that_a_kill_has_cut_is_dropped(tmp_path):
    study = open_(tmp_path)
    study.tell(studies.take(study, SPACE, SEARCH), 1.0)
    with (tmp_path / studies.FILES["journal"]).open("ab") as file:
        file.write(b'{"op_code":5,"worker')
    study = open_(tmp_path)
    study.tell(studies.take(study, SPACE, SEARCH), 2.0)
    assert [trial.value for trial in open_(tmp_path).trials] == [1.0, 2.0]


def test_values_come_back_as_the_fields_hold_them():
    assert studies.values_of(SPACE, {"rate": 0.1, "kind": "(1, 2)"}) == {"rate": 0.1, "kind": (1, 2)}


def test_a_locked_file_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "BUSY_SECONDS", 0.05)
    open_(tmp_path, "sqlite")
    other = sqlite3.connect(tmp_path / studies.FILES["sqlite"])
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ValueError, match=r"study.db cannot be opened: database is locked; is another") as caught:
        open_(tmp_path, "sqlite")
    other.close()
    assert "\n" not in str(caught.value)


def test_a_start_that_made_no_trial_leaves_the_folder_to_another_sweep(tmp_path):
    open_(tmp_path, search=Search("eval/accuracy", "maximize"))
    study = open_(tmp_path, **{"optim.eps": "1e-07"})
    assert study.direction.name == "MINIMIZE"
    studies.take(study, SPACE, SEARCH)
    with pytest.raises(ValueError, match="holds another sweep: optim.eps was 1e-07"):
        open_(tmp_path)


def test_the_study_of_another_sweep_is_one_line(tmp_path):
    studies.take(open_(tmp_path), SPACE, SEARCH)
    with pytest.raises(ValueError, match="holds another sweep: optim.eps was 1e-08, now 1e-07; give another --run_dir"):
        open_(tmp_path, **{"optim.eps": "1e-07"})
    with pytest.raises(ValueError, match="--storage journal continues it"):
        open_(tmp_path, "sqlite")


def test_a_study_that_no_sweep_has_made_is_one_line(tmp_path):
    storage = f"sqlite:///{tmp_path / studies.FILES['sqlite']}"
    optuna.create_study(study_name="mine", storage=storage)
    with pytest.raises(ValueError, match="holds the study 'mine', which is not a sweep"):
        open_(tmp_path, "sqlite")


def test_a_file_that_is_no_study_is_one_line(tmp_path):
    for kind in studies.FILES:
        (folder := tmp_path / kind).mkdir()
        (folder / studies.FILES[kind]).write_bytes(b"no study, not at all\n" * 9)
        with pytest.raises(ValueError, match=r"study\.\w+ (is not the journal|cannot be opened)") as caught:
            open_(folder, kind)
        assert "\n" not in str(caught.value)
