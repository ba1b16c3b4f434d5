"""Read the records of a scaling benchmark: series by device count, efficiency, and limits.

A record is one point: layout, mode ("weak" or "strong"), source ("measured" or "planned"), devices,
processes, batch_size, step_seconds, tokens_per_second, mfu, bytes_by_axis (of one device and one
step), and the environment.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from bigmodel_jax.core.device_memory import size_text
from bigmodel_jax.report.progress import short

RECORDS_FILE = "scale.jsonl"
# Scaling stops where more devices bring less than half of the ideal gain.
HALF = 0.5

Record = dict[str, Any]


class Series(NamedTuple):
    """Points of one layout, ordered by number of devices.

    name: distinguishes it from the other series on the page.
    """

    name: str
    records: list[Record]


def read_records(run_dir: Path) -> list[Record]:
    """The records in scale.jsonl. Raises ValueError if it is missing, empty or damaged."""
    path = Path(run_dir) / RECORDS_FILE
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise ValueError(f"{run_dir} holds no {RECORDS_FILE}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    if not records:
        raise ValueError(f"{path} is empty")
    return records


def series_of(records: list[Record], prefix: str = "") -> list[Series]:
    """Group records into series: within one, only the number of devices and the measured values
    differ.
    """
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        # Devices of several processes talk over a network, so their points form series of their
        # own.
        per_process = record["processes"] > 1
        key = (record["layout"], record["mode"], record["source"], record["device_kind"], per_process)
        groups.setdefault(key, []).append(record)
    # A series' name holds only properties in which the series differ.
    differing = [len({key[i] for key in groups}) > 1 for i in range(5)]
    out = []
    for key, group in groups.items():
        words = [key[0], *(str(k) for k, differs in zip(key[1:4], differing[1:4], strict=True) if differs)]
        words += ["several processes"] if key[4] and differing[4] else []
        out.append(Series(prefix + ", ".join(words), sorted(group, key=lambda r: r["devices"])))
    return out


def efficiency(series: Series) -> list[float]:
    """Throughput per device relative to the smallest number of devices; 1 is ideal."""
    rates = [r["tokens_per_second"] / r["devices"] for r in series.records]
    return [rate / rates[0] for rate in rates]


def verdict(series: Series) -> str:
    """One line that says where the series stops scaling, and why."""
    for before, after in pairwise(series.records):
        gain = after["tokens_per_second"] / before["tokens_per_second"] - 1
        if gain < HALF * (after["devices"] / before["devices"] - 1):
            return (
                f"{series.name}: scaling stops at {before['devices']}; {after['devices']} devices bring {gain:+.0%} "
                f"({_reason(after)})"
            )
    first, last = series.records[0]["devices"], series.records[-1]["devices"]
    if first == last:
        return f"{series.name}: one number of devices"
    return f"{series.name}: scales to {last} devices, with {efficiency(series)[-1]:.0%} of the efficiency on {first}"


def _reason(record: Record) -> str:
    if record["source"] == "measured" and record["device_kind"] == "cpu":
        cores = record["environment"]["cpu_cores"]
        return f"{record['devices']} virtual devices share {cores} cores, which one device uses already"
    if "bound" in record:
        return f"bound by {record['bound']}"
    moved = record["bytes_by_axis"]
    if not moved:
        return "no collective moves anything: the devices themselves are slower together"
    axis = max(moved, key=moved.get)
    return f"{moved[axis] / 2**20:,.1f} MiB a device and step cross {axis}"


COLUMNS = ("Layout", "Devices", "Machine", "Batch", "Step", "p95", "Throughput", "Efficiency", "MFU", "Moved a device")
NARROW = tuple(name for name in COLUMNS if name not in ("Machine", "Batch", "Moved a device"))  # fits 80 columns


def scaling_table(records: list[Record]) -> Table:
    """The terminal's table. The page has more columns."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in NARROW:
        table.add_column(name, justify="left" if name == "Layout" else "right")
    for series in series_of(records):
        for record, share in zip(series.records, efficiency(series), strict=True):
            cells = dict(zip(COLUMNS, row(series.name, record, share), strict=True))
            table.add_row(*(cells[name] for name in NARROW))
    return table


def row(name: str, record: Record, share: float) -> list[str]:
    """One point as texts, in the order of COLUMNS."""
    processes = f" ({record['processes']} processes)" if record["processes"] > 1 else ""
    p95 = record.get("step_seconds_p95")
    moved = ", ".join(f"{axis} {size_text(n)}" for axis, n in record["bytes_by_axis"].items()) or "-"
    return [
        name,
        f"{record['devices']}{processes}",
        record.get("topology") or record["device_kind"],
        f"{record['batch_size']:,}",
        f"{1e3 * record['step_seconds']:,.1f} ms",
        "-" if p95 is None else f"{1e3 * p95:,.1f} ms",
        f"{short(record['tokens_per_second'])} {record['unit']}/s",
        f"{share:.0%}",
        f"{record['mfu']:.1%}",
        moved,
    ]
