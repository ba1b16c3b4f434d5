import numpy as np
import pytest

import run_folders as folders
from bigmodel_jax.report import plot_style, plots, plots_together
from bigmodel_jax.report.history import load_run
from bigmodel_jax.report.picture_grid import write_grid
from bigmodel_jax.report.plot_style import DARK, LIGHT, smooth
from bigmodel_jax.report.plots import draw, write
from bigmodel_jax.report.plots_together import draw_together, letter


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(plot_style, "DPI", 80)
    for module in (plots, plots_together):
        monkeypatch.setattr(module, "render", plot_style.render)


def make_plots(run_dir):
    """The pictures of a run's page, written as the page writes them."""
    return write(run_dir, draw(load_run(run_dir), LIGHT))


def size(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


COMMON = {"loss", "learning_rate", "grad_norm", "throughput", "step_time"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "extra"),
    [
        (folders.text_run, {"bits_per_byte"}),
        (folders.digit_run, {"accuracy", "confusion", "per_class"}),
        (folders.labelled_run, {"accuracy", "confusion", "per_class"}),
        (folders.pairs_run, {"image_to_text_top1", "text_to_image_top1", "text_to_image_top5"}),
        (folders.own_metrics_run, {"router_entropy", "f_beta"}),
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
    assert not paths, "an empty frame around one dot"


def test_two_metrics_of_one_plot_are_drawn_in_training_too_under_one_title(tmp_path):
    run = load_run(folders.preference_run(tmp_path / "run"))
    (names,) = (group for group in plots.groups(run) if "chosen_reward" in group)
    (axes,) = plots.metric_figure(names, run, LIGHT).axes
    assert axes.get_title(loc="left") == "Rewards"
    assert sorted(len(line.get_xdata()) for line in axes.lines) == [1, 1, 3, 3]


@pytest.mark.slow
def test_one_evaluation_is_no_curve(tmp_path):
    made = {path.stem for path in make_plots(folders.own_metrics_run(tmp_path / "run", evaluations=1))}
    assert made == COMMON | {"router_entropy"}


@pytest.mark.parametrize(("seconds", "title"), [(0.25, "Step time, ms"), (57.0, "Step time, s")])
def test_a_steps_time_has_the_unit_that_a_reader_would_choose(tmp_path, seconds, title):
    records = [folders.training(step, 8.3) | {"step_seconds": seconds} for step in (1, 2, 3)]
    run = load_run(folders.metrics(tmp_path / "run", records))
    assert plots.step_time_figure(run, LIGHT).axes[0].get_title(loc="left") == title


@pytest.mark.slow
def test_plots_of_an_earlier_report_do_not_stay(tmp_path):
    run = folders.own_metrics_run(tmp_path / "run")
    make_plots(run)
    folders.own_metrics_run(run, evaluations=1)
    make_plots(run)
    assert not (run / "plots" / "f_beta.png").exists()


def test_labels_are_inside_the_axes_and_none_over_another():
    for wanted in ([0.02] * 5, [1.3, 1.4], [-0.5, 0.4, 0.42, 0.43, 2.0], [0.5], np.linspace(-1, 2, 12)):
        half = [0.04] * len(wanted)
        places = plot_style.spread(list(wanted), half)
        assert min(places) >= 0.04 - 1e-9
        assert max(places) <= 0.96 + 1e-9
        assert all(np.diff(places) >= 0.08 - 1e-9)
    np.testing.assert_allclose(plot_style.spread([0.2, 0.5, 0.51, 0.9], [0.04] * 4), [0.2, 0.465, 0.545, 0.9])


def test_twenty_runs_that_end_alike_keep_their_labels_inside(tmp_path):
    runs = [load_run(folders.text_run(tmp_path / str(n), loss=4 + n / 100)) for n in range(20)]
    figure = plots_together.loss_by_step_figure(runs, LIGHT)
    places = sorted(text.get_position()[1] for text in figure.axes[0].texts)
    assert len(places) == 20
    assert 0 < places[0] < places[-1] < 1
    assert min(np.diff(places)) > 0.04


def test_several_runs_are_drawn_together_and_need_no_evaluation(tmp_path):
    runs = [load_run(folders.text_run(tmp_path / "a")), load_run(folders.metrics(tmp_path / "b", []))]
    runs.append(load_run(folders.metrics(tmp_path / "c", [folders.training(step, 1.0) for step in range(1, 70)])))
    pictures = draw_together(runs, DARK)
    of_steps = ["learning_rate", "grad_norm", "tokens_per_second"]
    assert list(pictures) == ["loss_by_step", "loss_by_time", "loss_by_tokens", "bits_per_byte", *of_steps]
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
