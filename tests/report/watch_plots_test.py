"""What was watched, as panels, and on the page."""

import json

import numpy as np

import run_folders
from bigmodel_jax.report.history import load_run
from bigmodel_jax.report.page import build_report
from bigmodel_jax.report.plot_style import LIGHT
from bigmodel_jax.report.plots import measured
from bigmodel_jax.report.watch_plots import OUTSIDE, draw_watched, panels


def watched(folder):
    """Two layers of two kinds, one table, over three steps; one number was not finite."""
    run_folders.text_run(folder)
    with open(folder / "metrics.jsonl", "a") as file:
        for step in (2, 4, 8):
            seen = {"watch/gradients/layers/attn": [1.0 * step, 2.0 * step], "watch/gradients/layers/mlp": [0.5, None]}
            seen |= {
                "watch/gradients/embed": [3.0],
                "watch/gradients/head": [4.0],
                "watch/attention_entropy": [1.0, 2.0],
            }
            seen |= {"watch/gradient_signal": 2.0, "watch/gradient_variance": 8.0, "watch/noise_scale": 4.0}
            file.write(json.dumps({"step": step} | seen) + "\n")
    return folder


def test_panels_are_kinds_and_rows_are_layers(tmp_path):
    found = panels(load_run(watched(tmp_path / "run")), "gradients")
    assert list(found) == ["layers/attn", "layers/mlp", OUTSIDE]
    steps, values, names = found["layers/attn"]
    assert (steps.tolist(), values.tolist(), names) == ([2, 4, 8], [[2, 4, 8], [4, 8, 16]], ["0", "1"])
    assert np.isnan(found["layers/mlp"][1][1]).all()
    assert found[OUTSIDE][2] == ["embed", "head"]
    assert found[OUTSIDE][1].tolist() == [[3] * 3, [4] * 3]


def test_the_page_has_heat_maps_and_no_curve_of_the_same_numbers(tmp_path):
    run = load_run(watched(tmp_path / "run"))
    assert list(draw_watched(run, LIGHT)) == ["watch_gradients", "watch_attention_entropy", "watch_noise_scale"]
    assert not any("watch" in name for name in measured(run))
    page = build_report([run.path], tmp_path / "page.html").read_text()
    assert "Inside the network" in page
    assert (run.path / "plots" / "watch_gradients.png").is_file()


def test_a_run_that_did_not_look_has_no_such_section(tmp_path):
    run = load_run(run_folders.text_run(tmp_path / "run"))
    assert draw_watched(run, LIGHT) == {}
    assert "Inside the network" not in build_report([run.path], tmp_path / "page.html").read_text()
