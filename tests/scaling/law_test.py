"""The scaling law: coefficients that are known, a paper's points, and what is no family of runs."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from bigmodel_jax.cli import main
from bigmodel_jax.scaling import law as laws
from bigmodel_jax.scaling.law import Law, Points

POINTS = Path(__file__).parent / "published" / "chinchilla_points.csv"
# Besiroglu et al., arXiv:2404.10102, table 1, by the points that they read off figure 4 of
# arXiv:2203.15556, less the five of largest loss. In brackets: its standard errors.
PUBLISHED = Law(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
ERRORS = Law(E=0.03, A=124.58, B=1293.23, alpha=0.02, beta=0.02)


def grid(law: Law, noise: float = 0.0) -> Points:
    N, D = (x.ravel() for x in np.meshgrid([1e7, 4e7, 2e8, 1e9], [4e8, 2e9, 1e10, 8e10]))
    return Points(N, D, law.loss(N, D) * np.exp(noise * np.random.default_rng(0).standard_normal(N.size)))


def published() -> Points:
    rows = [[float(x) for x in row.values()] for row in csv.DictReader(POINTS.open())]
    N, flops, loss = np.array(rows).T
    kept = loss < np.sort(loss)[-5]
    return Points(N[kept], (flops / 6 / N)[kept], loss[kept])


def test_a_law_is_found_again_from_its_own_points():
    law = Law(1.7, 400.0, 1500.0, 0.33, 0.36)
    assert laws.fit(grid(law)) == pytest.approx(law, rel=2e-3)


@pytest.mark.slow
def test_a_papers_points_give_its_coefficients():
    points = published()
    found = laws.fit(points)
    assert len(points.N) == 240
    assert pytest.approx(PUBLISHED.E, abs=1e-3) == found.E
    assert found.alpha == pytest.approx(PUBLISHED.alpha, abs=2e-3)
    assert found.beta == pytest.approx(PUBLISHED.beta, abs=2e-3)
    assert pytest.approx(PUBLISHED.A, rel=0.05) == found.A
    assert pytest.approx(PUBLISHED.B, rel=0.05) == found.B
    for value, published_value, error in zip(found, PUBLISHED, ERRORS, strict=True):
        assert abs(value - published_value) < 0.1 * error


def test_the_best_split_of_compute_is_where_no_other_is_better():
    N, D = PUBLISHED.optimum(1e21)
    assert pytest.approx(1e21) == 6 * N * D
    others = N * np.linspace(0.5, 2, 101)
    assert np.argmin(PUBLISHED.loss(others, 1e21 / 6 / others)) == np.abs(others - N).argmin()


@pytest.mark.slow
def test_intervals_hold_the_law_and_narrow_with_the_noise():
    law = Law(1.7, 400.0, 1500.0, 0.33, 0.36)
    widths = {}
    for noise in (0.002, 0.02):
        points = grid(law, noise)
        samples = laws.bootstrap(points, law, 12)
        low, high = laws.interval([one.loss(1e10, 1e12) for one in samples])
        widths[noise] = high - low
        if noise == 0.002:
            assert low - 0.02 < law.loss(1e10, 1e12) < high + 0.02
    assert widths[0.002] < widths[0.02]


def write_run(folder: Path, N: int, tokens: float, loss: float, steps: int = 10, done: int = 10) -> str:
    """The folder of a run that trained a table of about N parameters."""
    from bigmodel_jax import config_file
    from bigmodel_jax.config import Config, TrainConfig
    from bigmodel_jax.data import TextData, TextFiles
    from bigmodel_jax.models import LlamaConfig
    from bigmodel_jax.objectives import NextToken

    width = max(8, round((N / 40) ** 0.5) // 2 * 2)
    model = LlamaConfig(64, 2, width, 1, 1, width, width, 32)
    folder.mkdir(parents=True)
    config = Config(model, NextToken(), TextData(source=TextFiles("a", "b")), train=TrainConfig(steps=steps))
    config_file.save(config, folder / "config.json")
    records = [{"step": done, "loss": loss, "step_seconds": 1.0, "tokens_per_second": tokens / done}]
    records += [{"step": done, "eval/loss": loss}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder)


def family(folder: Path) -> list[str]:
    law, runs = Law(1.0, 60.0, 300.0, 0.4, 0.4), []
    for N in (20_000, 80_000, 320_000):
        for D in (1e6, 4e6, 16e6):
            runs.append(write_run(folder / f"{N}-{D:.0e}", N, D, float(law.loss(N, D))))
    return runs


@pytest.mark.slow
def test_the_verb_fits_runs_and_writes_a_page(tmp_path, capsys):
    runs, page = family(tmp_path / "runs"), tmp_path / "out" / "law.html"
    main(["scale", "--law", *runs, "--expect", "1e7,1e9", "--samples", "20", "--output", str(page)])
    record = json.loads(page.with_suffix(".json").read_text())
    assert record["metric"] == "eval/loss"
    assert len(record["points"]) == 9
    assert record["points"][0]["D"] == pytest.approx(1e6)
    (one,) = record["expected"]
    low, high = one["interval"]
    assert low - 1e-6 <= one["loss"] <= high + 1e-6
    assert one["loss"] < min(p["loss"] for p in record["points"])
    assert "Iso-FLOP" in page.read_text()
    assert "10M parameters, 1B tokens" in capsys.readouterr().out


def test_what_determines_no_law_is_one_line(tmp_path):
    one = grid(PUBLISHED)
    with pytest.raises(ValueError, match=r"1 different sizes of model; a law needs 3"):
        laws.check(one.some(one.N == 1e7))
    with pytest.raises(ValueError, match=r"5 runs; five coefficients need 6"):
        laws.check(Points(np.arange(1.0, 6), np.arange(1.0, 6), np.ones(5)))
    with pytest.raises(ValueError, match=r"the runs' tokens grow with their sizes; give sizes with several"):
        laws.check(Points(np.arange(1.0, 8), 20 * np.arange(1.0, 8), np.ones(7)))


def test_mistakes_of_the_verb_are_one_line(tmp_path):
    from bigmodel_jax.verbs.laws import law

    with pytest.raises(ValueError, match=r"--expect '1e9'; it must be parameters,tokens"):
        law([str(tmp_path), "--expect", "1e9"])
    with pytest.raises(ValueError, match=r"is not a folder"):
        law([str(tmp_path / "none")])
    half = write_run(tmp_path / "half", 20_000, 1e6, 3.0, steps=20)
    with pytest.raises(ValueError, match=r"stands at step 10 of 20"):
        law([half])
    with pytest.raises(ValueError, match=r"--output = 'a.json': the page's numbers go to that file"):
        law([half, "--output", "a.json"])
    with pytest.raises(ValueError, match=r"half is named twice; each run counts once"):
        law([half, half])
