import json

import numpy as np
import pytest

import run_folders as folders
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.report import declared
from bigmodel_jax.report.history import config_diff, flatten, headline, load_run, loss_unit, unit
from bigmodel_jax.report.page import build_report


def test_seconds_and_tokens_accumulate_over_steps_not_over_records(tmp_path):
    records = [folders.training(step, 1.0) for step in (10, 20)]
    run = load_run(folders.metrics(tmp_path / "run", records))
    assert run.elapsed(np.asarray([0.0, 15.0, 20.0])).tolist() == [0.0, 7.5, 10.0]
    assert run.tokens(np.asarray([20.0])).tolist() == [2000.0]


def test_null_is_no_point_of_a_series(tmp_path):
    run = load_run(folders.metrics(tmp_path / "run", [{"step": 1, "loss": None}, {"step": 2, "loss": 3.0}]))
    steps, values = run.series("loss")
    assert (steps.tolist(), values.tolist()) == ([2.0], [3.0])


def test_headline_of_a_run(tmp_path):
    figures = headline(load_run(folders.text_run(tmp_path / "run")))
    assert figures["eval/bits_per_byte"] == 1.75
    assert figures["train_loss"] == 0.5
    assert figures["wall_seconds"] == 4.0
    assert figures["data_wait_share"] == pytest.approx(0.01)


@pytest.mark.parametrize("records", [[], [{"step": 1, "loss": None}], [{"step": 2, "eval/loss": 1.0}]])
def test_headline_of_a_run_that_died_early_has_what_there_is(tmp_path, records):
    figures = headline(load_run(folders.metrics(tmp_path / "run", records)))
    assert set(figures) <= {"step", "eval/loss"}


def test_unit_follows_the_evaluation(tmp_path):
    assert unit(load_run(folders.text_run(tmp_path / "a"))) == "token"
    assert unit(load_run(folders.digit_run(tmp_path / "b"))) == "example"


def test_samples_come_in_the_order_of_their_numbers(tmp_path):
    folders.text_run(tmp_path / "run")
    (tmp_path / "run" / "samples" / "step_10.txt").write_text("later")
    assert [name for name, _ in load_run(tmp_path / "run").samples] == ["step_8.txt", "step_10.txt"]


def test_flatten_names_every_leaf():
    assert flatten({"a": {"b": 1, "c": [1, {"d": 2}]}, "e": None}) == {"a.b": 1, "a.c": [1, {"d": 2}], "e": None}


def test_config_diff_has_only_what_differs(tmp_path):
    both = [load_run(folders.text_run(tmp_path / name, lr=lr)) for name, lr in (("a", 0.1), ("b", 0.2))]
    assert config_diff(both) == {"optim.lr": [0.1, 0.2]}
    assert config_diff([both[0], both[0]]) == {}


def test_a_field_that_one_run_lacks_differs(tmp_path):
    both = [load_run(folders.text_run(tmp_path / "a")), load_run(folders.digit_run(tmp_path / "b"))]
    assert config_diff(both)["optim.lr"] == [0.1, None]


@pytest.mark.parametrize(
    ("objective", "counted", "loss"),
    [
        ("bigmodel_jax.objectives.language_model:NextToken", "token", "nats per token"),
        ("bigmodel_jax.objectives.regression:Regression", "example", "squared error"),
        ("bigmodel_jax.objectives.contrastive:Contrastive", "example", "nats per example"),
    ],
)
def test_a_loss_is_counted_in_the_unit_of_its_objective(objective, counted, loss, tmp_path):
    """The folder does not declare its metrics, as in an older version."""
    run_dir = folders.metrics(tmp_path / "run", [folders.training(1, 2.0)])
    (run_dir / "config.json").write_text(json.dumps({"objective": {"type": objective}}))
    run = load_run(run_dir)
    assert (unit(run), loss_unit(run)) == (counted, loss)


def test_a_metric_of_a_users_own_is_declared_once(tmp_path):
    """The folder gives its title, form, direction and level; no line of the report knows them."""
    own = Metric("exact", "Exactly right", "more", "{:.1%}", "of the sums", headline=True)
    guess = Metric("guess", "By chance", form="{:.1%}", beside="exact", level=True)
    runs = []
    for name, exact in (("a", 0.25), ("b", 0.5)):
        run_dir = folders.metrics(
            tmp_path / name, [{"step": n, "eval/exact": exact, "eval/guess": 0.1} for n in (1, 2)]
        )
        declared.write(run_dir, {"eval/exact": own, "eval/guess": guess}, "examples", {})
        runs.append(run_dir)
    page = build_report(runs[:1], tmp_path / "a.html").read_text()
    assert (runs[0] / "plots" / "exact.png").is_file()
    assert "Exactly right" in page
    assert "25.0 %" in page
    assert "By chance" in page
    both = build_report(runs, tmp_path / "both.html").read_text()
    assert 'best">50.0 %' in both


WIDE = '{"counts": "tokens", "metrics": [{"name": "f/beta", "form": "{:1000000000d}"}]}'
NO_TEXT = '{"counts": "tokens", "metrics": [{"name": "f/beta", "title": ["x"]}]}'


@pytest.mark.parametrize("text", ["", "[]", '{"metrics": 3}', '{"counts": 1, "metrics": [{"nome": 1}]}', WIDE, NO_TEXT])
def test_a_folder_that_declares_nothing_readable_is_shown_by_its_names(tmp_path, text):
    run_dir = folders.own_metrics_run(tmp_path / "run")
    (run_dir / declared.DECLARED_FILE).write_text(text)
    assert load_run(run_dir).metric("eval/f/beta").title == "F/beta"


@pytest.mark.parametrize(
    "tag", ["bigmodel_jax.gone.away:Lost", "bigmodel_jax.objectives:Gone", "bigmodel_jax.core.files:replace"]
)
def test_a_class_that_is_not_there_any_more_declares_nothing(tmp_path, tag):
    run_dir = folders.own_metrics_run(tmp_path / "run")
    (run_dir / "config.json").write_text(json.dumps({"objective": {"type": tag}}))
    assert load_run(run_dir).metric("eval/f/beta").title == "F/beta"
