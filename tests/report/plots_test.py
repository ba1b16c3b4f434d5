import numpy as np
import pytest

import run_folders as folders
from bigmodel_jax.report import plot_style, plots
from bigmodel_jax.report.history import load_run
from bigmodel_jax.report.picture_grid import write_grid
from bigmodel_jax.report.plot_style import DARK, LIGHT, smooth
from bigmodel_jax.report.plots import draw_together, letter, make_plots


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(plot_style, "DPI", 80)


def size(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


COMMON = {"loss", "learning_rate", "grad_norm", "throughput", "step_time"}


@pytest.mark.parametrize(
    ("make", "extra"),
    [
        (folders.text_run, {"bits_per_byte"}),
        (folders.digit_run, {"accuracy", "confusion", "per_class"}),
        (folders.labelled_run, {"accuracy", "confusion", "per_class"}),
        (folders.pairs_run, {"retrieval"}),
    ],
)
def test_a_run_gets_the_plots_it_has_data_for(tmp_path, make, extra):
    paths = make_plots(make(tmp_path / "run"))
    assert {path.stem for path in paths} == COMMON | extra
    for path in paths:
        png = path.read_bytes()
        assert min(size(png)) >= 280
        assert len(png) > 3000  # an empty canvas of this size compresses to less


@pytest.mark.parametrize(
    "records",
    [[], [{"step": 1, "loss": None, "grad_norm": None}], [folders.training(1, 8.3)], [{"step": 1, "eval/loss": 2.0}]],
)
def test_a_run_that_died_early_gets_what_there_is(tmp_path, records):
    paths = make_plots(folders.metrics(tmp_path / "run", records))
    assert ("loss" in {p.stem for p in paths}) == any(r.get("loss") or r.get("eval/loss") for r in records)


def test_several_runs_are_drawn_together_and_need_no_evaluation(tmp_path):
    runs = [load_run(folders.text_run(tmp_path / "a")), load_run(folders.metrics(tmp_path / "b", []))]
    runs.append(load_run(folders.metrics(tmp_path / "c", [folders.training(step, 1.0) for step in range(1, 70)])))
    pictures = draw_together(runs, DARK)
    assert list(pictures) == ["loss_by_step", "loss_by_time", "loss_by_tokens"]
    assert all(len(png) > 3000 for png in pictures.values())
    assert draw_together(runs[1:2], DARK) == {}


def test_a_classs_name_is_on_its_figures_and_a_long_one_cut(tmp_path):
    run = load_run(folders.labelled_run(tmp_path / "run"))
    for make in (plots.confusion_figure, plots.per_class_figure):
        axes = make(run, LIGHT).axes[0]
        shown = [tick.get_text() for tick in axes.get_yticklabels()]
        assert sorted(shown) == ["negative & <sad…", "positive"]


def test_generated_images_become_one_picture(tmp_path):
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        path = tmp_path / f"{channels}.png"
        write_grid(path, rng.random((7, 8, 8, channels), np.float32), [f"title {n}" for n in range(7)])
        assert min(size(path.read_bytes())) >= 280


def test_smoothing_has_no_lag_and_keeps_a_straight_line():
    line = np.arange(200.0)
    np.testing.assert_allclose(smooth(line), line)
    noise = np.random.default_rng(0).normal(size=200)
    assert smooth(noise).std() < 0.6 * noise.std()


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_smoothing_short_curves(count):
    assert smooth(np.ones(count)).tolist() == [1.0] * count


def test_letters_do_not_repeat():
    assert len({letter(i) for i in range(60)}) == 60
