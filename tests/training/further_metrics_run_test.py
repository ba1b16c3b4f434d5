"""A run with metrics of one's own and groups: on the bar, in the records, on the page, in
best_metric."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from bigmodel_jax import cli, config_file
from bigmodel_jax.report.page import build_report
from bigmodel_jax.training.evaluate_saved import evaluate_run

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_metric.py"


@pytest.fixture
def people(tmp_path, monkeypatch):
    """Two towns; in the smaller one, the label is noise."""
    rng = np.random.default_rng(0)
    lines = ["x,y,town,bought"]
    for number in range(200):
        x, y = rng.normal(size=2).round(3)
        town = "Ulm" if number % 4 else "Bonn"
        lines.append(f"{x},{y},{town},{int(x + y > 0) if number % 4 else number % 8 // 4}")
    (tmp_path / "people.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


ARGS = ("--data.group_by", "town", "--eval.baselines", "False", "--report.tensorboard", "False")


@pytest.mark.slow
def test_ones_own_metric_and_groups_are_everywhere_without_another_line(people, capsys):
    cli.main(["train", str(EXAMPLE), "--run_dir", "run", *ARGS])
    shown = capsys.readouterr().out
    assert re.search(r"evaluation at step 20 .*brier 0\.\d+ .*mean_iou 0\.\d+", shown.replace("\n", " ")), shown
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    last = [r for r in records if "eval/brier" in r][-1]
    lines = {(metric, group): rest for metric, group, *rest in last["eval/groups"]}
    rows = {group: lines["accuracy", group][0] for group in ("Bonn", "Ulm")}
    assert sum(rows.values()) == np.sum(last["eval/confusion"]) == 40
    accuracy = {group: lines["accuracy", group][1] for group in rows}
    assert sum(rows[g] * accuracy[g] for g in rows) / 40 == pytest.approx(last["eval/accuracy"])
    assert last["eval/worst_group_accuracy"] == min(accuracy.values())
    assert last["eval/accuracy_gap"] == pytest.approx(max(accuracy.values()) - min(accuracy.values()))
    assert all(low <= value <= high for _, value, low, high in lines.values())
    assert {metric for metric, _ in lines} >= {"true_positive_rate", "false_positive_rate", "positive_rate"}
    page = build_report([Path("run")], Path("page.html")).read_text()
    for text in ("Brier", "By group", "Bonn", "Ulm", "Worst group", "ROC", "Calibration"):
        assert text in page, text
    # The best save is that of the least Brier score; the verb `eval` gives the same numbers.
    config = config_file.load("run")
    step, scalars = evaluate_run(config, Path("run"), "best")
    best = min((r for r in records if "eval/brier" in r), key=lambda r: r["eval/brier"])
    assert (step, scalars["eval/brier"]) == (best["step"], pytest.approx(best["eval/brier"]))
    assert scalars["eval/groups"] == best["eval/groups"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--eval.metrics", "top4"), "eval.metrics = 'top4' is no metric"),
        (("--data.target", "bougt"), "has no column 'bougt' (perhaps you meant 'bought')"),
        (
            ("--data.group_by", "twon"),
            "data.group_by: people.csv line 2 has no column 'twon' (perhaps you meant 'town')",
        ),
        (("--checkpoint.best_metric", "eval/bier"), "allowed: eval/accuracy"),
    ],
)
def test_mistakes_are_one_line_before_a_folder_is_made(people, capsys, args, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", str(EXAMPLE), "--run_dir", "run", *args])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert message in said.replace("\n", " "), said
    assert not (people / "run").exists()
