"""Parts shared by the pages of a training plan and of a server's plan."""

import re
from collections.abc import Iterable
from html import escape

from bigmodel_jax.core.device_memory import size_text
from bigmodel_jax.report import elements
from bigmodel_jax.report.progress import duration, short

GIB = 2.0**30


def header(kicker: str, name: str, facts: Iterable[str]) -> str:
    """The head of the page. `facts` are HTML."""
    spans = "".join(f"<span>{fact}</span>" for fact in facts)
    return f'<header><p class="kicker">{kicker}</p><h1>{escape(name)}</h1><p class="facts">{spans}</p></header>'


def mesh_text(mesh: dict[str, int]) -> str:
    """The mesh as text, such as "fsdp=8 x tensor=4"."""
    return " x ".join(f"{axis}={size}" for axis, size in mesh.items()) or "one device"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A dense table. It is empty without rows."""
    if not rows:
        return ""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return elements.panel(f'<table class="dense"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>')


def _cell(text: str) -> str:
    """A table cell. Numbers stay on one line. Names may wrap."""
    if re.fullmatch(r"[\d.,]+ ?[A-Za-zµ]*", text):
        return f'<td class="number">{text}</td>'
    return f"<td>{escape(text)}</td>"


def changes(plan: dict) -> str:
    """A table of the changes that were compiled because the plan did not fit."""
    rows = [
        (
            change["options"],
            "fits" if change["fits"] else "does not fit",
            size_text(change["used"]) if change["used"] else "refused",
        )
        for change in plan.get("changes", [])
    ]
    return table(("Change", "", "Memory of a device"), rows)


def collectives(found: list[dict]) -> str:
    """A table of one program's collectives on one device, by mesh axis."""
    rows = [
        (
            " x ".join(row["axes"]) or "-",
            row["kind"] + (", beside computation" if row["asynchronous"] else ", waited for"),
            f"{row['runs']:,}",
            size_text(row["sent"]),
            duration(row["seconds"]),
            row["network"].upper(),
        )
        for row in found
    ]
    return table(("Axes", "Collective", "Runs", "Sent", "Time", "Over"), rows)


def slowest(found: list) -> str:
    """A table of a program's twelve slowest operations, from (label, seconds, FLOPs, bytes)."""
    rows = [(label, duration(seconds), short(flops), size_text(size)) for label, seconds, flops, size in found[:12]]
    return table(("Operation", "Time", "FLOPs", "HBM"), rows)


def chip(plan: dict) -> dict[str, str]:
    """The published figures of the chip."""
    found = plan["chip"]
    return {
        "chip": found["name"],
        "peak": f"{found['bf16'] / 1e12:,.0f} TFLOP/s in bfloat16",
        "HBM": f"{found['hbm'] / GIB:.2f} GiB a device, {found['hbm_bandwidth'] / 1e9:,.0f} GB/s a chip",
        "links": f"{found['links']} of {found['link'] / 1e9:,.0f} GB/s each way",
        "data-centre network": f"{found['dcn'] / 1e9:,.3g} GB/s a chip",
        "source": found["source"],
    }


def config(parts: dict) -> str:
    """The parts of a config, each a folded dict of its fields."""
    return "".join(
        elements.folded(
            key,
            value.get("type", "").rpartition(":")[2],
            elements.definitions({k: v for k, v in value.items() if k != "type"}),
        )
        for key, value in parts.items()
        if isinstance(value, dict)
    )
