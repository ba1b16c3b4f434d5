"""Write a server's plan.html: a device's memory, speed of prefill and decode, cost of tokens."""

from html import escape
from pathlib import Path

from bigmodel_jax.core import files
from bigmodel_jax.core.device_memory import size_text
from bigmodel_jax.report import elements, plan_parts, plan_plots
from bigmodel_jax.report.plan_parts import GIB
from bigmodel_jax.report.plot_style import DARK, LIGHT, Theme, render
from bigmodel_jax.report.progress import duration, short
from bigmodel_jax.report.shell import shell

PARTS = ("weights", "cache", "temporaries", "program")
RESOURCES = {
    "compute": "compute",
    "hbm": "HBM",
    "expected": "both, as compiled",
    "ici": "between chips",
    "dcn": "network",
}


def build_serving_page(plan: dict, folder: Path) -> Path:
    """Write plan.html and its figures into `folder`. Returns the page's path."""
    figures = {"memory": plan_plots.memory, "time": _time}
    light, dark = render(figures, plan, LIGHT), render(figures, plan, DARK)
    for name, png in light.items():
        files.replace(folder / f"{name}.png", png)
    decode = plan.get("decode", {})
    shown = {name: plan["config"].get(name) for name in ("model", "parallel", "precision")}
    body = "".join(
        (
            _header(plan),
            f'<div class="cards">{"".join(_cards(plan))}</div>',
            elements.section("Where it goes", f'<div class="figures">{elements.pictures(light, dark)}</div>'),
            elements.section("What would make it fit", plan_parts.changes(plan), "Each change was compiled."),
            elements.section("Rates", _rates(plan), "Rates of one decode step for all slots, and of one prefill."),
            elements.section("Weights", _weights(plan), "As the compiled programs receive them, on one device."),
            elements.section(
                "Collectives",
                plan_parts.collectives(decode.get("collectives", [])),
                "Collectives of one decode step, on one device.",
            ),
            elements.section(
                "Slowest operations of decode",
                plan_parts.slowest(decode.get("slowest", [])),
                "Arithmetic and HBM, without communication.",
            ),
            elements.section("The machine", elements.panel(elements.definitions(_machine(plan)))),
            elements.section("Configuration", elements.panel(plan_parts.config(shown))),
        )
    )
    page = folder / "plan.html"
    files.replace(page, shell(f"{plan['name']} served on {plan['topology']}", body))
    return page


def _header(plan: dict) -> str:
    serving = plan["serving"]
    items = [
        f"<b>{escape(plan['topology'])}</b>",
        f"<b>{plan['chips']:,}</b> chip{'s' * (plan['chips'] != 1)}",
        f"mesh {escape(plan_parts.mesh_text(plan['mesh']))}",
        f"{escape(plan['model'])}, <b>{short(plan['parameters'])}</b> parameters in {escape(plan['weights'])}",
        f"<b>{serving['slots']:,}</b> slots of {serving['length']:,} tokens",
        escape(plan["date"]),
    ]
    return plan_parts.header("Plan of a server", plan["name"], items)


def _cards(plan: dict) -> list[str]:
    memory = plan["memory"]
    used, limit = memory["used"], memory["limit"]
    bars = [("all", used / max(used, limit), f"{used / GIB:.2f}")]
    bars += [
        (name, memory["parts"][name] / max(used, limit), f"{memory['parts'][name] / GIB:.2f}") for name in PARTS[:3]
    ]
    fits = "Fits" if plan["fits"] else "Does not fit"
    cards = [elements.hero(fits, f"{used / GIB:.2f} GiB", f"of {limit / GIB:.2f} GiB a device", bars)]
    if "decode" not in plan:
        return cards
    decode, prefill, most, requests = (plan[name] for name in ("decode", "prefill", "largest", "requests"))
    chips = f"{short(decode['tokens_per_second_of_a_chip'])} a chip"
    above = f"; {most['does_not_fit']:,} do not fit" if most["does_not_fit"] else ""
    price = f"{plan['dollars_per_chip_hour']:.2f} $ a chip-hour, {plan['prices_of']}"
    return [
        *cards,
        elements.card("Decode, tokens/s", short(decode["tokens_per_second"]), chips),
        elements.card("Decode step", duration(decode["step_seconds"]), f"{decode['tokens']:,} slots"),
        elements.card("Prefill, tokens/s", short(prefill["tokens_per_second"]), f"prompts of {prefill['tokens']:,}"),
        elements.card(
            "Largest batch", f"{most['slots']:,}", f"slots, {short(most['tokens_per_second'])} tokens/s{above}"
        ),
        elements.card("A million tokens", f"${decode['dollars_per_million']:.3g}", f"decoded; {price}"),
        elements.card(
            "Requests/s",
            short(requests["per_second"]),
            f"of {requests['prompt']:,} + {requests['answer']:,} tokens; ${requests['dollars_per_thousand']:.3g} a thousand",
        ),
    ]


def _rates(plan: dict) -> str:
    if "decode" not in plan:
        return ""
    both = [plan["decode"], plan["prefill"]]
    rows = [(text, *(duration(one["roofline"][name]) for one in both)) for name, text in RESOURCES.items()]
    rows += [
        ("predicted", *(duration(one["step_seconds"]) for one in both)),
        ("tokens/s", *(short(one["tokens_per_second"]) for one in both)),
        ("tokens/s a chip", *(short(one["tokens_per_second_of_a_chip"]) for one in both)),
        ("read and written in HBM", *(size_text(one["hbm_bytes"]) for one in both)),
        ("FLOPs of a device", *(short(one["flops_per_device"]) for one in both)),
        ("$ per million tokens", *(f"{one['dollars_per_million']:.3g}" for one in both)),
    ]
    return elements.table(("", "Decode", "Prefill"), rows, "dense")


def _weights(plan: dict) -> str:
    found = plan["memory"]["weights_by_type"]
    return elements.table(("Type", "Size"), [(name, size_text(size)) for name, size in found.items()], "dense")


def _machine(plan: dict) -> dict[str, str]:
    return plan_parts.chip(plan) | {
        "compiled in": ", ".join(f"{name} {one['compile_seconds']:.0f} s" for name, one in plan["compile"].items()),
        "not in the prediction": "latency of collectives and kernels, the host, and the network to the clients",
    }


def _time(plan: dict, theme: Theme):
    return plan_plots.resources(plan, plan.get("decode", {}), "Time of a decode step", theme)
