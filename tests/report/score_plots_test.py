"""Curves, calibration and groups of a run that recorded them, as figures and as tables."""

from html import unescape
from pathlib import Path

import pytest

from bigmodel_jax.objectives import Classification
from bigmodel_jax.report import class_tables, declared, score_plots
from bigmodel_jax.report.history import load_run
from bigmodel_jax.report.plot_style import LIGHT
from run_folders import metrics, training

ROC = [[0, 0.75, [0, 0.5, 1], [0, 0.5, 1]], [2, 0.9, [0, 0, 1], [0, 0.8, 1]]]
CALIBRATION = [[0, 0.0, 0.0], [6, 0.5, 0.25], [14, 0.9, 0.95]]
GROUPS = [
    ["accuracy", "<b>Bonn</b>", 10, 0.5, 0.24, 0.76],
    ["accuracy", "Ulm", 30, 0.9, 0.74, 0.97],
    ["positive_rate", "Ulm", 30, 0.4, 0.25, 0.58],
]


class ByTown:
    group_by, levels = "town", ()


@pytest.fixture
def run(tmp_path):
    found = {"eval/roc": ROC, "eval/precision_recall": ROC, "eval/calibration": CALIBRATION, "eval/groups": GROUPS}
    found |= {"eval/ece": 0.11, "eval/confusion": [[8, 2], [0, 10]], "eval/accuracy": 0.9}
    folder = metrics(tmp_path / "scored", [training(1, 2.0), {"step": 1, **found}])
    declared.write(folder, declared.of(Classification, ByTown), "examples", {})
    return load_run(folder)


def lines(figure):
    return [(line.get_label(), line.get_xydata().tolist()) for line in figure.axes[0].get_lines()]


@pytest.mark.parametrize("make", [score_plots.roc_figure, score_plots.precision_recall_figure])
def test_each_class_has_its_curve_and_area(run, make):
    (first, points), (second, _), *_ = lines(make(run, LIGHT))
    assert (first, second) == ("0  0.750", "2  0.900")
    assert points == [[0, 0], [0.5, 0.5], [1, 1]]


def test_calibration_leaves_out_bins_without_rows(run):
    figure = score_plots.calibration_figure(run, LIGHT)
    assert figure.axes[0].get_title(loc="left") == "Calibration   (error 11.0 %)"
    assert [points for _, points in lines(figure)][1] == [[0.5, 0.25], [0.9, 0.95]]
    assert [round(bar.get_height(), 2) for bar in figure.axes[0].patches] == [0, 0.3, 0.7]


def test_groups_are_drawn_from_the_best_to_the_worst_of_the_first_metric(run):
    figure = score_plots.groups_figure(run, LIGHT)
    assert figure.axes[0].get_title(loc="left") == "Accuracy by group"
    assert lines(figure)[0][1] == [[0.9, 0], [0.5, 1]], "the worst on top"
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["Ulm  (30)", "<b>Bonn</b>  (10)"]


def test_tables_have_means_of_the_classes_and_a_line_a_group(run):
    classes = class_tables.per_class(run)
    assert "Mean over classes (macro)" in classes
    assert classes.split("micro")[1].count("90.0 %") == 3, "precision, recall and F1 of all rows are the accuracy"
    table = class_tables.by_group(run)
    assert "<b>Bonn" not in table
    assert "<b>Bonn</b>" in unescape(table)
    assert "24.00 % to 76.00 %" in table
    assert "Predicted to be class 1" in table, "declared though no number of the whole split has that name"


def test_a_run_without_them_has_none(tmp_path: Path):
    run = load_run(metrics(tmp_path / "plain", [training(1, 2.0)]))
    makes = (score_plots.roc_figure, score_plots.precision_recall_figure, score_plots.calibration_figure)
    assert [make(run, LIGHT) for make in (*makes, score_plots.groups_figure)] == [None] * 4
    assert class_tables.by_group(run) == class_tables.per_class(run) == ""
