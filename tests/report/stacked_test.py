"""Bars of parts: each part is drawn, however many there are."""

import pytest

from bigmodel_jax.report import elements, plan_plots
from bigmodel_jax.report.plot_style import LIGHT


@pytest.mark.parametrize("count", [3, 9, 10, 14])
def test_every_piece_of_a_bar_is_drawn(count):
    html = elements.stacked([(f"part {i}", 1 / count, "text") for i in range(count)])
    assert html.count("<li>") == count
    assert html.count("flex-grow") == count


def test_every_part_of_a_devices_memory_is_drawn():
    parts = dict.fromkeys(plan_plots.PARTS, 2.0**30)
    assert len(parts) > len(LIGHT.series)
    memory = {"parts": parts, "limit": 2.0**35, "used": len(parts) * 2.0**30}
    assert len(plan_plots.memory({"memory": memory}, LIGHT).axes[0].containers) == len(parts)
