"""Runs with named evaluation sets: when each is evaluated, what is recorded of it, and what a
killed run goes on with."""

import dataclasses
import shutil

import numpy as np
import pytest

from bigmodel_jax.config import EvalConfig, EvalSet
from bigmodel_jax.core import sharding
from bigmodel_jax.data import TextData, TextFiles, TokenizerConfig
from bigmodel_jax.data.sources.sources import Arrays
from bigmodel_jax.objectives import Classification
from bigmodel_jax.report import declared
from bigmodel_jax.report.history import load_run
from bigmodel_jax.report.plot_style import LIGHT
from bigmodel_jax.report.plots import draw, groups
from bigmodel_jax.training.evaluate_saved import evaluate_run
from bigmodel_jax.training.set_evaluations import OpenSet, open_sets
from loop_test import config_of as plain_config
from loop_test import records, run, same


def others():
    rng = np.random.default_rng(1)
    split = {"image": rng.integers(0, 256, (11, 8, 8, 1), np.uint8), "label": np.arange(11) % 10}
    return {"train": split, "validation": split}


@dataclasses.dataclass(frozen=True)
class Doubled(Classification):
    """An objective that doubles the loss."""

    def score(self, out, batch, **rest):
        found = super().score(out, batch, **rest)
        double = dataclasses.replace(found.mean, total=2 * found.mean.total)
        return found._replace(mean=double, metrics=found.metrics | {"loss": double})


def config_of(folder, **changes):
    config = plain_config(folder)
    data = dataclasses.replace(config.data, source=Arrays(f"{__name__}:others"))
    sets = (
        EvalSet("same", config.data),
        EvalSet("other", data, every=3),
        EvalSet("double", data, objective=Doubled()),
    )
    return dataclasses.replace(config, eval=EvalConfig(every=4, sets=sets, **changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(config, folder) of a run of six steps, evaluated after 4 and 6, saved after 3 and 6."""
    folder = tmp_path_factory.mktemp("sets")
    run(config := config_of(folder), folder / "run")
    return config, folder / "run"


def figures(record, name):
    return {k.removeprefix(f"eval/{name}/"): v for k, v in record.items() if k.startswith(f"eval/{name}/")}


@pytest.mark.slow
def test_each_set_has_its_own_period_and_its_figures_stand_under_its_name(whole):
    _, folder = whole
    found = records(folder)
    when = {name: [step for step in found if figures(found[step], name)] for name in ("same", "other", "double")}
    assert when == {"same": [4, 6], "other": [3, 6], "double": [4, 6]}
    assert "eval/loss" not in found[3]
    for step in (4, 6):
        own = {k: v for k, v in found[step].items() if k.startswith("eval/") and k.count("/") == 1}
        assert {f"eval/{k}": v for k, v in figures(found[step], "same").items()} == own, "the same rows, bit for bit"
    assert figures(found[6], "other")["loss"] != found[6]["eval/loss"]
    assert figures(found[6], "double")["loss"] == pytest.approx(2 * figures(found[6], "other")["loss"], rel=1e-6)
    assert figures(found[6], "double")["accuracy"] == figures(found[6], "other")["accuracy"]


@pytest.mark.slow
def test_a_run_without_the_sets_learns_and_measures_the_same(whole, tmp_path):
    config, folder = whole
    run(plain_config(tmp_path), tmp_path / "run")
    same(config, folder, tmp_path / "run")
    alone, beside = records(tmp_path / "run"), records(folder)
    for step, record in alone.items():
        assert {k: beside[step][k] for k in record if "loss" in k or "accuracy" in k} == {
            k: v for k, v in record.items() if "loss" in k or "accuracy" in k
        }


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_figures(whole, tmp_path):
    config, folder = whole
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    run(config, tmp_path / "run")
    for step, record in records(folder).items():
        again = records(tmp_path / "run")[step]
        assert {k: v for k, v in again.items() if "eval/" in k} == {k: v for k, v in record.items() if "eval/" in k}


@pytest.mark.slow
def test_the_verb_evaluates_the_sets_as_the_run_did(whole):
    config, folder = whole
    step, scalars = evaluate_run(config, folder)
    last = {k: v for k, v in records(folder)[6].items() if k.startswith("eval/")}
    assert step == 6
    assert scalars.keys() == last.keys()
    for name, value in scalars.items():
        if isinstance(value, float):
            np.testing.assert_allclose(value, last[name], rtol=1e-6)


@pytest.mark.slow
def test_the_page_knows_the_sets_metrics_and_draws_them(whole):
    _, folder = whole
    found = load_run(folder)
    assert found.metric("eval/other/accuracy").label == "other"
    drawn = {names[0]: set(names[1:]) for names in groups(found)}
    assert {"same/accuracy", "other/accuracy", "double/accuracy"} < drawn["accuracy"]
    assert drawn["same/macro_f1"] == {"other/macro_f1", "double/macro_f1"}
    assert drawn["same/loss"] == {"other/loss", "double/loss"}
    assert {"same_loss", "accuracy", "loss"} <= draw(found, LIGHT).keys()
    known, _, _ = declared.read(folder, found.config)
    assert known["eval/other/accuracy"].better == "more"


@pytest.mark.slow
def test_the_best_save_and_early_stopping_may_go_by_a_set(tmp_path, monkeypatch):
    """Evaluations of the validation split between those of the set count for nothing."""
    losses = {3: 5.0, 6: 3.0, 9: 4.0}
    given = lambda self, step, weights, show: {f"eval/{self.name}/loss": losses[int(show.name.partition(".")[0])]}  # noqa: E731
    monkeypatch.setattr(OpenSet, "evaluate", given)
    config = config_of(tmp_path, patience=1)
    sets = tuple(one for one in config.eval.sets if one.name == "other")
    best = dataclasses.replace(config.checkpoint, best_metric="eval/other/loss", keep=1)
    train, own = dataclasses.replace(config.train, steps=12), dataclasses.replace(config.eval, sets=sets)
    said, _ = run(dataclasses.replace(config, checkpoint=best, train=train, eval=own), tmp_path / "run")
    assert "Stopped early: eval/other/loss has not been better than 3 at step 6 for 1 evaluations" in said
    assert sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()) == [6, 9]
    assert "eval/loss" in records(tmp_path / "run")[8]


def test_a_set_of_another_tokenizer_is_refused(tmp_path):
    for name in ("train", "validation"):
        (tmp_path / f"{name}.txt").write_text(f"{name} and some more text\n" * 20)
    files = TextFiles(str(tmp_path / "train.txt"), str(tmp_path / "validation.txt"))
    data = TextData(source=files, tokenizer=TokenizerConfig(kind="bytes"), seq_len=8, cache_dir=str(tmp_path / "cache"))
    other = dataclasses.replace(data, tokenizer=TokenizerConfig(kind="bpe", vocab_size=260))
    config = plain_config(tmp_path)
    config = dataclasses.replace(config, data=data, eval=EvalConfig(sets=(EvalSet("web", other),)))
    with pytest.raises(ValueError, match=r"eval\.sets\.0 \(web\): its data has another tokenizer than the run's"):
        open_sets(config, sharding.make_mesh(config.parallel), tmp_path, resumes=False)


def test_what_is_wrong_with_a_sets_data_names_the_set(tmp_path):
    config = config_of(tmp_path)
    missing = dataclasses.replace(config.data, source=Arrays(f"{__name__}:nothing"))
    config = dataclasses.replace(config, eval=EvalConfig(sets=(EvalSet("gone", missing),)))
    with pytest.raises(ValueError, match=r"eval\.sets\.0 \(gone\): .*nothing") as error:
        open_sets(config, sharding.make_mesh(config.parallel), tmp_path, resumes=False)
    assert "\n" not in str(error.value)
