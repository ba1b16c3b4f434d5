import numpy as np
import pytest

import optimizer_runs
from bigmodel_jax.sweep import rate_curve

STEPS = 120
RATES = rate_curve.rates(1e-6, 10.0, STEPS)


def valley(steepest: float, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Losses that fall from 2.3 to 0.3, fastest at `steepest`, and rise again from 30 times that
    rate."""
    at = np.log10(RATES / steepest)
    losses = 2.3 - 2.0 / (1 + np.exp(-6 * at)) + np.exp(8 * (at - 1.5))
    return np.minimum(losses, 1e4) + noise * np.random.default_rng(seed).normal(size=STEPS)


def test_rates_rise_by_one_factor():
    assert (RATES[0], RATES[-1]) == (np.float32(1e-6), np.float32(10.0))
    assert RATES[1:] / RATES[:-1] == pytest.approx(10 ** (7 / (STEPS - 1)), rel=1e-4)


@pytest.mark.parametrize("steepest", [1e-4, 3e-3, 3e-2])
def test_the_steepest_descent_is_found_under_noise(steepest):
    for seed in range(5):
        found = rate_curve.suggest(RATES, valley(steepest, 0.05, seed), STEPS)
        assert found.steepest == pytest.approx(steepest, rel=0.6)
        assert found.lowest == pytest.approx(steepest * 13, rel=0.8), "the least loss lies a decade above the steepest"
        assert found.rate == pytest.approx(found.lowest / 3)
        assert not found.at_end


def test_a_breakdown_does_not_reach_into_the_descent():
    """Losses of 1e4 after the valley change nothing before it."""
    mild, wild = (rate_curve.suggest(RATES, np.minimum(valley(3e-3), most), STEPS) for most in (3.0, 1e4))
    assert mild.steepest == wild.steepest
    assert mild.lowest == pytest.approx(wild.lowest, rel=0.2)


@pytest.mark.parametrize("losses", [np.full(STEPS, 2.3), np.linspace(2.3, 9.0, STEPS)], ids=["flat", "rising"])
def test_a_loss_that_never_falls_suggests_nothing(losses):
    noisy = losses + 0.05 * np.random.default_rng(0).normal(size=STEPS)
    found = rate_curve.suggest(RATES, noisy, STEPS)
    assert (found.rate, found.lowest, found.steepest) == (None, None, None)


def test_a_loss_that_still_falls_at_the_highest_rate_is_said():
    assert rate_curve.suggest(RATES, valley(1.0), STEPS).at_end
    assert not rate_curve.suggest(RATES[:60], valley(1.0)[:60], STEPS).at_end, "the test ended before the highest rate"


def ended(losses, steps=100) -> tuple[int, str]:
    watch = rate_curve.Watch(steps)
    return next(((n, why) for n, loss in enumerate(losses) if (why := watch.ends(loss))), (-1, ""))


def test_the_test_ends_where_the_smoothed_loss_is_four_times_the_least():
    n, why = ended([2.0] * 30 + [1.0] * 40 + [100.0] * 30)
    assert (n, why) == (70, "the smoothed loss was 4 times its least value")
    assert ended([2.0] * 30 + [1.0] * 40 + [3.9] * 30) == (-1, ""), "below four times"
    assert ended([-2.0] * 50 + [-1.0] * 50) == (-1, ""), "a negative loss that rises a little"
    assert ended([-2.0] * 50 + [30.0] * 50)[0] == 50
    assert ended([9.0, 0.1, 9.0, 2.0] + [1.0] * 96) == (-1, ""), "the first tenth is not judged"


def test_the_test_ends_where_the_loss_is_not_finite():
    assert ended([2.0, 2.0, float("nan")]) == (2, "the loss was nan")
    assert ended([2.0, float("inf")]) == (1, "the loss was inf")


@pytest.mark.slow
@pytest.mark.few("digits")
@pytest.mark.parametrize("task", ["digits", "decoder"])
def test_a_suggestion_is_within_a_factor_of_three_of_the_best_rate_of_a_sweep(task):
    """Each run of the sweep has a cosine schedule. One program trains all of them, with the range
    test as one run more."""
    steps, rates = optimizer_runs.STEPS[task], np.geomspace(1e-3, 0.3, 9)
    cosine = (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    rising = rate_curve.rates(1e-7, 10.0, 100)
    rows = [np.resize(rising, steps), *(rates[:, None] * cosine)]
    tested, *runs = optimizer_runs.losses(task, optimizer_runs.optim_of(), rows)
    tested = tested[: len(rising)]
    n, _ = ended(tested)
    found = rate_curve.suggest(rising[:n], tested[:n], 100)
    reached = np.nan_to_num([run[-optimizer_runs.LAST :].mean() for run in runs], nan=np.inf)
    best = rates[reached.argmin()]
    assert best / 3 <= found.rate <= 3 * best
