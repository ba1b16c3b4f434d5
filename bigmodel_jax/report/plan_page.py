"""Write plan.html, an offline page on a plan, and its figures as PNGs."""

from html import escape
from pathlib import Path

from bigmodel_jax.core import files
from bigmodel_jax.core.device_memory import size_text
from bigmodel_jax.report import elements, plan_parts, plan_plots
from bigmodel_jax.report.plan_parts import GIB
from bigmodel_jax.report.plot_style import DARK, LIGHT
from bigmodel_jax.report.progress import duration, short
from bigmodel_jax.report.shell import shell


def build_plan_page(plan: dict, folder: Path) -> Path:
    """Write plan.html and its figures into `folder`. Returns the page's path."""
    light, dark = plan_plots.draw(plan, LIGHT), plan_plots.draw(plan, DARK)
    for name, png in light.items():
        files.replace(folder / f"{name}.png", png)
    body = "".join(
        (
            _header(plan),
            f'<div class="cards">{"".join(_cards(plan))}</div>',
            elements.section("Where it goes", f'<div class="figures">{elements.pictures(light, dark)}</div>'),
            elements.section("What would make it fit", plan_parts.changes(plan), "Each change was compiled."),
            elements.section(
                "Failures", elements.panel(elements.definitions(_failures(plan)) if "goodput" in plan else "")
            ),
            elements.section("Largest buffers", _largest(plan), "The largest of the compiler's buffers on one device."),
            elements.section(
                "Collectives",
                plan_parts.collectives(plan.get("collectives", [])),
                "By mesh axis, of one device and one step.",
            ),
            elements.section(
                "Slowest operations",
                plan_parts.slowest(plan.get("slowest", [])),
                "Arithmetic and HBM, without communication.",
            ),
            elements.section("The machine", elements.panel(elements.definitions(_machine(plan)))),
            elements.section("Configuration", elements.panel(plan_parts.config(plan["config"]))),
        )
    )
    page = folder / "plan.html"
    files.replace(page, shell(f"{plan['name']} on {plan['topology']}", body))
    return page


def _header(plan: dict) -> str:
    slices = f"{plan['slices']} x " if plan["slices"] > 1 else ""
    items = [
        f"<b>{escape(slices + plan['topology'])}</b>",
        f"<b>{plan['chips']:,}</b> chip{'s' * (plan['chips'] != 1)}",
        f"mesh {escape(plan_parts.mesh_text(plan['mesh']))}",
        f"{escape(plan['model'])}, <b>{short(plan['parameters'])}</b> parameters",
        f"{plan['tokens_per_step']:,} tokens a step",
        escape(plan["date"]),
    ]
    return plan_parts.header("Plan", plan["name"], items)


def _cards(plan: dict) -> list[str]:
    memory = plan["memory"]
    limit = f"of {memory['limit'] / GIB:.2f} GiB a device"
    fits = "Fits" if plan["fits"] else "Does not fit"
    used = memory.get("used", 0.0)
    unit = GIB if used >= GIB else 2.0**20  # all bars use the unit of the total
    # The larger of need and limit has the full length, so the bars of a plan that does not fit stay
    # inside the card.
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
        *_sampling_cards(plan),
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


def _sampling_cards(plan: dict) -> list[str]:
    found = plan.get("sampling", {})
    if not found or "refused" in found:
        return [elements.card("Sampling", "Does not fit", found["refused"])] if found else []
    answers = f"{found['answers']:,} answers of {found['answer']:,} tokens in {found['slots']:,} slots"
    return [elements.card("Sampling a step", duration(found["step_seconds"]), f"{answers} at most")]


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
    """A value in three digits. A value below 0.01 becomes "< 0.01"."""
    return f"{sign}{short(value)}" if value >= 0.01 else f"< {sign}0.01"


def _biggest_parts(memory: dict) -> list[tuple[str, float]]:
    parts = sorted(memory.get("parts", {}).items(), key=lambda item: -item[1])[:4]
    return [("all", memory["used"]), *parts] if parts else []


def _largest(plan: dict) -> str:
    rows = [
        (size_text(row["bytes"]), row["shape"], row["source"], row["operation"])
        for row in plan["memory"].get("largest", [])
    ]
    return plan_parts.table(("Size", "Array", "Line of the model", "Operation"), rows)


def _machine(plan: dict) -> dict[str, str]:
    made = plan["compile"]
    return plan_parts.chip(plan) | {"compiled in": f"{made['seconds']:.0f} s, {made['cpu_seconds']:.0f} CPU-seconds"}
