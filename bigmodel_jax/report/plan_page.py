"""plan.html: a plan as one page that opens offline, and its pictures beside it."""

import re
from html import escape
from pathlib import Path

from bigmodel_jax.core.device_memory import size_text
from bigmodel_jax.report import elements, plan_plots
from bigmodel_jax.report.plot_style import DARK, LIGHT
from bigmodel_jax.report.progress import duration, short
from bigmodel_jax.report.shell import shell

GIB = 2.0**30


def build_plan_page(plan: dict, folder: Path) -> Path:
    """Writes plan.html and one PNG per picture into `folder`; returns the page."""
    light, dark = plan_plots.draw(plan, LIGHT), plan_plots.draw(plan, DARK)
    for name, png in light.items():
        (folder / f"{name}.png").write_bytes(png)
    body = "".join(
        (
            _header(plan),
            f'<div class="cards">{"".join(_cards(plan))}</div>',
            elements.section("Where it goes", f'<div class="figures">{elements.pictures(light, dark)}</div>'),
            elements.section("What would make it fit", _changes(plan), "Each change was compiled."),
            elements.section(
                "Failures", elements.panel(elements.definitions(_failures(plan)) if "goodput" in plan else "")
            ),
            elements.section("Largest buffers", _table(*_largest(plan)), "Of the compiler's buffers, on one device."),
            elements.section("Collectives", _table(*_collectives(plan)), "By mesh axis, of one device and one step."),
            elements.section(
                "Slowest operations", _table(*_slowest(plan)), "Arithmetic and HBM, without communication."
            ),
            elements.section("The machine", elements.panel(elements.definitions(_machine(plan)))),
            elements.section("Configuration", elements.panel(_config(plan["config"]))),
        )
    )
    page = folder / "plan.html"
    page.write_text(shell(f"{plan['name']} on {plan['topology']}", body), encoding="utf-8")
    return page


def _header(plan: dict) -> str:
    mesh = " x ".join(f"{axis}={size}" for axis, size in plan["mesh"].items()) or "one device"
    slices = f"{plan['slices']} x " if plan["slices"] > 1 else ""
    items = [
        f"<b>{escape(slices + plan['topology'])}</b>",
        f"<b>{plan['chips']:,}</b> chips",
        f"mesh {escape(mesh)}",
        f"{escape(plan['model'])}, <b>{short(plan['parameters'])}</b> parameters",
        f"{plan['tokens_per_step']:,} tokens a step",
        escape(plan["date"]),
    ]
    spans = "".join(f"<span>{item}</span>" for item in items)
    return f'<header><p class="kicker">Plan</p><h1>{escape(plan["name"])}</h1><p class="facts">{spans}</p></header>'


def _cards(plan: dict) -> list[str]:
    memory = plan["memory"]
    limit = f"of {memory['limit'] / GIB:.2f} GiB a device"
    fits = "Fits" if plan["fits"] else "Does not fit"
    used = memory.get("used", 0.0)
    unit = GIB if used >= GIB else 2.0**20  # the bars' numbers are in the unit of the one above them
    bars = [(name, size / max(used, memory["limit"]), f"{size / unit:.2f}") for name, size in _biggest_parts(memory)]
    value = f"{used / unit:.2f} {'GiB' if unit == GIB else 'MiB'}" if used else fits
    cards = [elements.hero(fits, value, limit, bars)]
    if "roofline" not in plan:
        return cards
    run = plan["run"]
    line = plan["roofline"]
    return [
        *cards,
        *_goodput_cards(plan),
        elements.card(
            "Predicted step",
            duration(line["step"]),
            f"{duration(line['hidden'])} to {duration(line['exposed'])}; {BOUNDS[line['bound']]} longest",
        ),
        elements.card("MFU", f"{100 * plan['mfu']:.1f} %", f"{100 * plan['mfu_bound']:.1f} % at best"),
        elements.card(
            "Tokens/s", short(plan["tokens_per_second"]), f"{short(plan['tokens_per_second'] / plan['chips'])} a chip"
        ),
        elements.card("Run", duration(run["seconds"]), f"{short(run['tokens'])} tokens"),
        elements.card("Chip-hours", _least(run["chip_hours"]), f"{plan['chips']:,} chips"),
        elements.card(
            "Cost", _least(run["dollars"], "$"), f"{run['dollars_per_chip_hour']:.2f} $ a chip-hour, {run['prices_of']}"
        ),
    ]


def _goodput_cards(plan: dict) -> list[str]:
    if "goodput" not in plan:
        return []
    found = plan["goodput"]
    return [
        elements.card(
            "Goodput", f"{100 * found['share']:.1f} %", f"a failure every {duration(found['job_mtbf_seconds'])}"
        ),
        elements.card(
            "Save every", f"{found['save_every_steps']:,}", f"steps, {duration(found['save_every_seconds'])}"
        ),
    ]


def _failures(plan: dict) -> dict:
    found = plan["goodput"]
    return {
        "failures of one host": f"every {found['host_mtbf_hours']:,g} hours",
        "failures of the job": f"every {duration(found['job_mtbf_seconds'])}, with {found['hosts']:,} hosts",
        "best interval": f"--checkpoint.every {found['save_every_steps']}, {duration(found['save_every_seconds'])} (Daly)",
        "a save": f"{size_text(found['checkpoint_bytes'])}; the steps wait {duration(found['save_seconds'])}",
        "on disk after": f"{duration(found['write_seconds'])}, {found['storage_bytes_per_second'] / 1e9:g} GB/s a host",
        "a restart": duration(found["restart_seconds"]),
        "the run": f"{duration(found['seconds'])} and {short(found['failures'])} failures, instead of "
        f"{duration(plan['run']['seconds'])}",
        "cost": f"{short(found['chip_hours'])} chip-hours, {_least(found['dollars'], '$')}",
    }


BOUNDS = {"compute": "arithmetic takes", "hbm": "HBM takes", "ici": "the chips' links take", "dcn": "the network takes"}


def _least(value: float, sign: str = "") -> str:
    """To three digits; of less than a hundredth that alone."""
    return f"{sign}{short(value)}" if value >= 0.01 else f"< {sign}0.01"


def _biggest_parts(memory: dict) -> list[tuple[str, float]]:
    parts = sorted(memory.get("parts", {}).items(), key=lambda item: -item[1])[:4]
    return [("all", memory["used"]), *parts] if parts else []


def _table(head: tuple[str, ...], rows: list[tuple]) -> str:
    if not rows:
        return ""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return elements.panel(f'<table class="dense"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>')


def _cell(text: str) -> str:
    """A name may wrap; a number stays beside its unit."""
    if re.fullmatch(r"[\d.,]+ ?[A-Za-zµ]*", text):
        return f'<td class="number">{text}</td>'
    return f"<td>{escape(text)}</td>"


def _largest(plan: dict):
    rows = [
        (size_text(row["bytes"]), row["shape"], row["source"], row["operation"])
        for row in plan["memory"].get("largest", [])
    ]
    return ("Size", "Array", "Line of the model", "Operation"), rows


def _collectives(plan: dict):
    rows = [
        (
            " x ".join(row["axes"]) or "-",
            row["kind"] + (", beside computation" if row["asynchronous"] else ", waited for"),
            f"{row['runs']:,}",
            size_text(row["sent"]),
            duration(row["seconds"]),
            row["network"].upper(),
        )
        for row in plan.get("collectives", [])
    ]
    return ("Axes", "Collective", "Runs", "Sent", "Time", "Over"), rows


def _slowest(plan: dict):
    rows = [
        (label, duration(seconds), short(flops), size_text(size))
        for label, seconds, flops, size in plan.get("slowest", [])[:12]
    ]
    return ("Operation", "Time", "FLOPs", "HBM"), rows


def _changes(plan: dict) -> str:
    rows = [
        (
            change["options"],
            "fits" if change["fits"] else "does not fit",
            size_text(change["used"]) if change["used"] else "refused",
        )
        for change in plan.get("changes", [])
    ]
    return _table(("Change", "", "Of a device"), rows)


def _machine(plan: dict) -> dict:
    chip = plan["chip"]
    return {
        "chip": chip["name"],
        "peak": f"{chip['bf16'] / 1e12:,.0f} TFLOP/s in bfloat16",
        "HBM": f"{chip['hbm'] / GIB:.2f} GiB a device, {chip['hbm_bandwidth'] / 1e9:,.0f} GB/s a chip",
        "links": f"{chip['links']} of {chip['link'] / 1e9:,.0f} GB/s each way",
        "data-centre network": f"{chip['dcn'] / 1e9:,.3g} GB/s a chip",
        "source": chip["source"],
        "compiled in": f"{plan['compile']['seconds']:.0f} s, {plan['compile']['cpu_seconds']:.0f} CPU-seconds",
    }


def _config(config: dict) -> str:
    parts = {key: value for key, value in config.items() if isinstance(value, dict)}
    return "".join(
        elements.folded(
            key,
            value.get("type", "").rpartition(":")[2],
            elements.definitions({k: v for k, v in value.items() if k != "type"}),
        )
        for key, value in parts.items()
    )
