"""The table of optimizers and schedules, docs/optimizers.md: written from these tests' results, and
held to what ships.

uv run --group dev pytest tests/optim/optimizer_table_test.py -m exhaustive --optimizers-table
docs/optimizers.md
"""

import re
from pathlib import Path

import numpy as np
import pytest
from grids import few

from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.optim.names import OPTIMIZERS
from bigmodel_jax.optim.schedules import SCHEDULES
from optimizer_runs import LAST, RATES, best, losses, optim_of, run

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"
ALL_SCHEDULES = (*SCHEDULES, "one_cycle")
# The one that most runs have, a rule without momentum, and one whose average is evaluated.
REPRESENTATIVES = ("adamw", "sign_sgd", "schedule_free_adamw")
# It divides by the second moment of the step before, which is at first as small as rounding, with
# an eps of 1e-16.
BY_ROUNDING = {"acprop"}


def row(name: str, optim, folder) -> list[str]:
    """The cells of one row; trains, shards and resumes, or fails."""
    cells = []
    for task, share in (("digits", 0.8), ("decoder", 0.9)):
        rate, first, last = best(task, optim(rate=RATES[0]))
        assert last < share * first, f"{name} does not train the {task}: {first} to {last} at {rate}"
        cells += [f"{rate:g}", f"{last:.3f}"]
    return [f"`{name}`", *cells, f"{apart(name, optim(rate=float(cells[0])), folder):.0e}"]


def apart(name: str, optim, folder) -> float:
    """The largest difference of a parameter on eight devices from one; each mesh's run resumes bit
    for bit, or fails."""
    one = run("digits", optim, ParallelConfig(data=1), folder / "one")
    eight = run("digits", optim, ParallelConfig(data=1, fsdp=8), folder / "eight")
    found = max(np.abs(one[path] - eight[path]).max() for path in one)
    assert found <= 1e-4 or name in BY_ROUNDING, f"{name}: 8 devices differ from one by {found}"
    return found


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_trains_from_its_best_rate_shards_and_resumes(name, tmp_path, record_property):
    record_property("optimizer", row(name, lambda rate: optim_of(name, lr=rate), tmp_path))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ALL_SCHEDULES)
def test_a_schedule_trains_from_its_best_rate_shards_and_resumes(name, tmp_path, record_property):
    record_property("schedule", row(name, lambda rate: optim_of(schedule=name, lr=rate), tmp_path))


def written() -> dict[str, list[str]]:
    """{name: its cells} of the page's two tables."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(), re.M)
    assert len(dict(rows)) == len(rows), "each name once"
    return {name: cells.split(" | ") for name, cells in rows}


def test_the_page_has_every_optimizer_and_schedule_that_ships():
    assert list(written()) == [*OPTIMIZERS, *ALL_SCHEDULES]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", few(REPRESENTATIVES, "adamw"))
def test_the_page_says_what_an_optimizer_does(name, tmp_path):
    """The test measures the loss at the page's rate, checks that no other rate is much better, and
    checks that the optimizer shards and resumes."""
    cells = written()[name]
    for task, rate, loss in (("digits", *cells[:2]), ("decoder", *cells[2:4])):
        n = RATES.index(float(rate))
        near = RATES[max(n - 1, 0) : n + 2]
        ends = losses(task, optim_of(name, lr=RATES[0]), near)[:, -LAST:].mean(axis=1)
        mine = ends[near.index(float(rate))]
        assert mine == pytest.approx(float(loss), rel=0.05)
        assert mine <= 1.05 * np.nanmin(ends), f"{task}: {ends} at {near}"
    apart(name, optim_of(name, lr=float(cells[0])), tmp_path)
