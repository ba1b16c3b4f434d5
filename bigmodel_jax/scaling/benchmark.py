"""Runs a scaling benchmark: measures or plans every point, and writes records, a table and a
page."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bigmodel_jax import config_file
from bigmodel_jax.plan.topology import Topology
from bigmodel_jax.report.scaling import RECORDS_FILE, scaling_table
from bigmodel_jax.report.scaling_page import build_scaling_page
from bigmodel_jax.scaling.measure import measure, measure_peak
from bigmodel_jax.scaling.planned import plan_point
from bigmodel_jax.scaling.points import Point


def scale(
    points: list[Point], run_dir: Path, *, topologies: Sequence[Topology], windows: int, steps: int, console: Console
) -> Path:
    """Measures or plans all points. Returns the path of the page.

    It writes scale.jsonl, with a line as soon as a point is done, and scale.html. A point whose
    layout does not fit its devices is left out, and a printed line says why. Raises ValueError if
    none fits.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    machines = {topology.title: topology for topology in topologies}
    records, measured = [], [point for point in points if not point.topology]
    # The peak is measured once, so that all points are compared with the same peak.
    peak = measure_peak(measured[0].config.precision.compute) if measured else {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar, (run_dir / RECORDS_FILE).open("w") as file:
        task = bar.add_task("", total=len(points))
        for point in points:
            bar.update(task, description=f"{point.layout} on {point.topology or point.devices}")
            try:
                if point.topology:
                    found = plan_point(point, machines[point.topology])
                else:
                    found = measure(point, windows=windows, steps=steps, peak=peak)
            except RuntimeError as error:
                console.print(f"left out: {error}", markup=False, highlight=False, soft_wrap=True)
            else:
                records.append(describe(point) | found)
                file.write(json.dumps(records[-1]) + "\n")
                # The records so far survive an interruption.
                file.flush()
            bar.advance(task)
    if not records:
        raise ValueError(f"{run_dir}: not one point could be measured or planned")
    console.print(scaling_table(records))
    return build_scaling_page([run_dir], run_dir / "scale.html")


def describe(point: Point) -> dict[str, Any]:
    """The description of a point in its record, sufficient to measure it again."""
    facts = {f.name: getattr(point, f.name) for f in dataclasses.fields(point) if f.name != "config"}
    source = "planned" if point.topology else "measured"
    return facts | {"source": source, "config": config_file.to_json(point.config)}
