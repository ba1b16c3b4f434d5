"""A plan's page says sizes and times in the units that a reader would choose, of 8B and of a tiny
model alike."""

import copy
import json
import re
from pathlib import Path

import pytest

from bigmodel_jax.core.device_memory import size_text
from bigmodel_jax.report.plan_page import build_plan_page
from bigmodel_jax.report.progress import duration

PLAN = json.loads((Path(__file__).parents[2] / "docs" / "plans" / "8b_v5e" / "plan.json").read_text())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(200_000, "2.31 days"), (7200, "2 hours"), (90, "1.5 minutes"), (0.25, "250 ms"), (4e-4, "400 µs"), (0, "0 µs")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(3, "3 B"), (2048, "2.00 KiB"), (1.5 * 2**20, "1.50 MiB"), (2**31, "2.00 GiB")]
)
def test_sizes(number, text):
    assert size_text(number) == text


def page(plan: dict, tmp_path: Path) -> str:
    text = build_plan_page(plan, tmp_path).read_text()
    return re.sub(r'data:image/png;base64,[^"]*', "", text)


def test_a_large_plan_has_days_and_gibibytes(tmp_path):
    text = page(PLAN, tmp_path)
    for shown in ("3.73 GiB", "2.03 days", "1.75 s", "all-reduce, waited for", "150 ms"):
        assert shown in text, shown


def test_a_tiny_plan_has_no_powers_of_ten(tmp_path):
    """The plan has half a second for 900 steps in 57 MiB, at a cost of less than a cent."""
    plan = copy.deepcopy(PLAN)
    plan["memory"] |= {"used": 6e7, "parts": {"parameters": 1.6e7, "optimizer": 3.2e7}}
    plan["roofline"] |= {"step": 4.12e-4, "hidden": 2.37e-4, "exposed": 4.12e-4}
    plan["run"] |= {"seconds": 0.25, "chip_hours": 2.8e-4, "dollars": 3.3e-4}
    text = page(plan, tmp_path)
    for shown in ("57.22 MiB", "412 µs", "237 µs to 412 µs", "250 ms", "&lt; 0.01", "&lt; $0.01"):
        assert shown in text, shown
    assert not re.search(r"\de-\d", text.partition("Configuration")[0])
