"""What failures cost, against failures that are simulated; and the forecast of a plan, against sums
by hand."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bigmodel_jax.plan import failures, screen
from bigmodel_jax.plan.failures import Failures, forecast
from bigmodel_jax.plan.topology import parse
from bigmodel_jax.report import plan_plots
from bigmodel_jax.report.plan_page import build_plan_page

PLAN = json.loads((Path(__file__).parents[2] / "docs" / "plans" / "8b_v5e" / "plan.json").read_text())
PLAN |= {"checkpoint_bytes": 96e9}  # 8 billion parameters and two moments in float32
V5E = parse("v5e:16x16")


def simulated(interval: float, save: float, restart: float, write: float, gaps: np.ndarray) -> float:
    """The share of the time in steps that count, where a job fails after each of `gaps` in turn.
    The job restarts, takes steps for `interval`, waits `save` for a save, and goes on. After
    `write` the save is on disk and its steps count, unless the job has failed by then."""
    now, counted = np.full_like(gaps, restart), np.zeros_like(gaps)
    while (on_disk := now + interval + save + write <= gaps).any():
        counted += interval * on_disk
        now += interval + save
    return counted.sum() / gaps.sum()


# save, restart, write, mtbf, in seconds: a small pod, a large one, one that saves slowly and fails
# often.
PODS = [(30.0, 300.0, 90.0, 6 * 3600.0), (5.0, 600.0, 60.0, 2 * 3600.0), (300.0, 600.0, 0.0, 2 * 3600.0)]


@pytest.mark.parametrize("pod", PODS)
def test_the_recommended_interval_is_the_best_of_a_simulation_and_its_goodput_is_foreseen(pod):
    save, restart, write, mtbf = pod
    best = failures.daly(save, mtbf)
    gaps = np.random.default_rng(0).exponential(mtbf, 40_000)
    foreseen = failures.goodput(best, save, restart + write, mtbf)
    assert simulated(best, save, restart, write, gaps) == pytest.approx(foreseen, abs=0.005)
    factors = np.geomspace(0.5, 2.0, 15)
    shares = [simulated(f * best, save, restart, write, gaps) for f in factors]
    curve = np.polynomial.Polynomial.fit(np.log(factors), shares, 4)  # the noise of one point is left out
    fine = np.linspace(math.log(0.6), math.log(1.6), 1001)
    assert math.exp(fine[curve(fine).argmax()]) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("save", [0.01, 1.0, 60.0, 1000.0, 5000.0])
def test_the_higher_order_is_the_best_of_the_model_and_never_worse_than_the_first(save):
    """The first order is close where a save is short compared with the time between failures."""
    mtbf, share = 3600.0, lambda interval: failures.goodput(interval, save, 100.0, 3600.0)
    best = max(share(interval) for interval in np.geomspace(0.1, 20_000, 20_000))
    daly, young = failures.daly(save, mtbf), failures.young(save, mtbf)
    assert best * (1 + 1e-6) >= share(daly) > 0.999 * best
    assert share(daly) >= share(young) * (1 - 1e-9)
    if save <= 1:
        assert daly == pytest.approx(young, rel=0.02)


def test_a_save_that_takes_longer_than_the_run_lives_is_made_once_in_a_lifetime():
    assert failures.daly(8000.0, 3600.0) == 3600.0
    assert failures.goodput(3600.0, 8000.0, 1e9, 3600.0) == 0.0


def test_a_forecast_is_of_the_job_and_in_whole_steps():
    found = forecast(PLAN, V5E, Failures(mtbf=5000.0))["goodput"]
    assert found["hosts"] == 64
    assert found["job_mtbf_seconds"] == 5000 * 3600 / 64
    assert found["save_seconds"] == pytest.approx(1 + 96e9 / 256 / 16e9)
    assert found["write_seconds"] == pytest.approx(96e9 / 64 / 1e9)
    parts = PLAN["memory"]["parts"]
    read = 256 / 64 * (parts["parameters"] + parts["optimizer"]) / 1e9
    assert found["restart_seconds"] == pytest.approx(600 + read)
    step, mtbf = PLAN["step_seconds"], found["job_mtbf_seconds"]
    assert found["save_every_steps"] == round(failures.daly(found["save_seconds"], mtbf) / step)
    assert found["share"] == failures.goodput(
        found["save_every_seconds"], found["save_seconds"], 600 + read + 1.5, mtbf
    )
    assert 0.99 < found["share"] < 1
    run = PLAN["run"]
    assert found["seconds"] == pytest.approx(run["seconds"] / found["share"])
    assert found["dollars"] == pytest.approx(run["dollars"] / found["share"])
    assert found["failures"] == pytest.approx(found["seconds"] / mtbf)


def test_saves_do_not_come_faster_than_they_are_written():
    found = forecast(PLAN, V5E, Failures(mtbf=100.0, storage=0.01))["goodput"]
    step = PLAN["step_seconds"]
    assert found["write_seconds"] == 150
    assert found["save_every_steps"] == math.ceil((150 - found["save_seconds"]) / step)


def test_more_failures_and_slower_storage_make_it_worse():
    shares = [
        forecast(PLAN, V5E, Failures(mtbf, storage, None, restart))["goodput"]["share"]
        for mtbf, storage, restart in ((5000, 1, 10), (500, 1, 10), (500, 0.02, 10), (500, 0.02, 60))
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] - shares[-1] > 0.1


def test_without_failures_or_a_run_there_is_no_forecast():
    assert forecast(PLAN, V5E, Failures()) == {}
    assert forecast({k: v for k, v in PLAN.items() if k != "run"}, V5E, Failures(mtbf=1.0)) == {}


@pytest.mark.parametrize("mtbf", [1e-300, 1e-3, 1.0])
def test_a_run_that_would_get_nowhere_is_one_line(mtbf):
    with pytest.raises(ValueError, match="it would make no progress") as refused:
        forecast(PLAN, V5E, Failures(mtbf=mtbf))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "slices", "hosts"), [("v5e:16x16", 2, 128), ("v5p:4x4x8", 1, 32), ("v5e:1x1", 1, 1), ("h100:2x8x8", 1, 16)]
)
def test_hosts_of_a_topology(name, slices, hosts):
    assert parse(name, slices).hosts == hosts


def test_the_screen_and_the_page_say_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_plots, "draw", lambda plan, theme: {})
    plan = copy.deepcopy(PLAN) | forecast(PLAN, V5E, Failures(mtbf=5000.0))
    screen.show(plan, Console(width=80))
    shown = capsys.readouterr().out
    page = build_plan_page(plan, tmp_path).read_text()
    steps = plan["goodput"]["save_every_steps"]
    assert max(map(len, shown.splitlines())) <= 80
    for text in (f"{100 * plan['goodput']['share']:.1f}%", "3.26 days on 64 hosts", f"--checkpoint.every {steps}"):
        assert text in shown
    for text in (
        "<h2>Failures</h2>",
        f"{steps:,}</div>",
        f"--checkpoint.every {steps}",
        "89.41 GiB",
        "every 5,000 hours",
    ):
        assert text in page
    assert "Failures" not in build_plan_page(PLAN, tmp_path).read_text()
    json.dumps(plan, allow_nan=False)
