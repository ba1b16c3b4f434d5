"""plan.html of a server: what a device holds, how fast prefill and decode are, and what tokens cost."""

from html import escape
from pathlib import Path

from bigmodel_jax.core.device_memory import size_text
from bigmodel_jax.report import elements
from bigmodel_jax.report.plot_style import DARK, LIGHT, Theme, new_axes, render
from bigmodel_jax.report.progress import duration, short
from bigmodel_jax.report.shell import shell

GIB = 2.0**30
PARTS = ("weights", "cache", "temporaries", "program")
RESOURCES = {
    "compute": "compute",
    "hbm": "HBM",
    "expected": "both, as compiled",
    "ici": "between chips",
    "dcn": "network",
}


def build_serving_page(plan: dict, folder: Path) -> Path:
    """Writes plan.html and one PNG per picture into `folder`; returns the page."""
    figures = {"memory": _memory, "time": _time}
    light, dark = render(figures, plan, LIGHT), render(figures, plan, DARK)
    for name, png in light.items():
        (folder / f"{name}.png").write_bytes(png)
    body = "".join(
        (
            _header(plan),
            f'<div class="cards">{"".join(_cards(plan))}</div>',
            elements.section("Where it goes", f'<div class="figures">{elements.pictures(light, dark)}</div>'),
            elements.section("What would make it fit", _changes(plan), "Each change was compiled."),
            elements.section("Rates", _rates(plan), "Of one decode step of all slots, and of one prompt."),
            elements.section("Weights", _weights(plan), "As the compiled programs are given them, on one device."),
            elements.section("Collectives", _collectives(plan), "Of one decode step, on one device."),
            elements.section("Slowest operations of decode", _slowest(plan), "Arithmetic and HBM alone."),
            elements.section("The machine", elements.panel(elements.definitions(_machine(plan)))),
            elements.section("Configuration", elements.panel(_config(plan["config"]))),
        )
    )
    page = folder / "plan.html"
    page.write_text(shell(f"{plan['name']} served on {plan['topology']}", body), encoding="utf-8")
    return page


def _header(plan: dict) -> str:
    mesh = " x ".join(f"{axis}={size}" for axis, size in plan["mesh"].items()) or "one device"
    serving = plan["serving"]
    items = [
        f"<b>{escape(plan['topology'])}</b>",
        f"<b>{plan['chips']:,}</b> chips",
        f"mesh {escape(mesh)}",
        f"{escape(plan['model'])}, <b>{short(plan['parameters'])}</b> parameters in {escape(plan['weights'])}",
        f"<b>{serving['slots']:,}</b> slots of {serving['length']:,} tokens",
        escape(plan["date"]),
    ]
    spans = "".join(f"<span>{item}</span>" for item in items)
    return f'<header><p class="kicker">Plan of a server</p><h1>{escape(plan["name"])}</h1><p class="facts">{spans}</p></header>'


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
            f"{requests['per_second']:.3g}",
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


def _changes(plan: dict) -> str:
    rows = [
        (
            change["options"],
            "fits" if change["fits"] else "does not fit",
            size_text(change["used"]) if change["used"] else "refused",
        )
        for change in plan.get("changes", [])
    ]
    return elements.table(("Change", "", "Of a device"), rows, "dense") if rows else ""


def _collectives(plan: dict) -> str:
    rows = [
        (
            " x ".join(row["axes"]) or "-",
            row["kind"],
            f"{row['runs']:,}",
            size_text(row["sent"]),
            duration(row["seconds"]),
            row["network"].upper(),
        )
        for row in plan.get("decode", {}).get("collectives", [])
    ]
    return elements.table(("Axes", "Collective", "Runs", "Sent", "Time", "Over"), rows, "dense") if rows else ""


def _slowest(plan: dict) -> str:
    rows = [
        (label, duration(seconds), short(flops), size_text(size))
        for label, seconds, flops, size in plan.get("decode", {}).get("slowest", [])[:12]
    ]
    return elements.table(("Operation", "Time", "FLOPs", "HBM"), rows, "dense") if rows else ""


def _machine(plan: dict) -> dict:
    chip = plan["chip"]
    return {
        "chip": chip["name"],
        "peak": f"{chip['bf16'] / 1e12:,.0f} TFLOP/s in bfloat16",
        "HBM": f"{chip['hbm'] / GIB:.2f} GiB a device, {chip['hbm_bandwidth'] / 1e9:,.0f} GB/s a chip",
        "source": chip["source"],
        "compiled in": ", ".join(f"{name} {one['compile_seconds']:.0f} s" for name, one in plan["compile"].items()),
        "not in the prediction": "latency of collectives and kernels, the host, and the network to the clients",
    }


def _config(config: dict) -> str:
    parts = {key: config[key] for key in ("model", "parallel", "precision") if isinstance(config.get(key), dict)}
    return "".join(
        elements.folded(
            key,
            value.get("type", "").rpartition(":")[2],
            elements.definitions({k: v for k, v in value.items() if k != "type"}),
        )
        for key, value in parts.items()
    )


# ------------------------------------------------------------------------------------------------ pictures


def _memory(plan: dict, theme: Theme):
    """One bar of what a device holds, against what it has."""
    parts, limit = plan["memory"]["parts"], plan["memory"]["limit"] / GIB
    figure, axes = new_axes(theme, "Memory of a device", "GiB", height=3.0)
    start = 0.0
    for name, color in zip(PARTS, theme.series, strict=False):
        size = parts[name] / GIB
        axes.barh(0, size, left=start, height=0.5, color=color, label=f"{name} {size:.2f}")
        start += size
    axes.axvline(limit, color=theme.ink, linewidth=2)
    axes.text(limit, 0.36, f"{limit:.2f} ", ha="right", va="bottom", color=theme.ink, weight="bold")
    axes.set_xlim(0, 1.03 * max(limit, start))
    axes.set_ylim(-0.4, 0.6)
    axes.set_yticks([])
    axes.legend(ncols=2, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.3), fontsize=10.5)
    return figure


def _time(plan: dict, theme: Theme):
    """What each resource would take alone in a decode step, and the step that comes of it."""
    if "decode" not in plan:
        return None
    line = plan["decode"]["roofline"]
    rows = [(text, 1000 * line[name]) for name, text in RESOURCES.items() if line[name]]
    rows.append(("predicted step", 1000 * line["step"]))
    figure, axes = new_axes(theme, "Time of a decode step", "milliseconds", height=1.4 + 0.36 * len(rows))
    places, longest = range(len(rows))[::-1], max(value for _, value in rows)
    colors = [theme.series[0]] * (len(rows) - 1) + [theme.series[1]]
    axes.barh(places, [value for _, value in rows], height=0.62, color=colors)
    for place, (_, value) in zip(places, rows, strict=True):
        axes.text(value + 0.01 * longest, place, f"{value:.3g}", va="center", color=theme.muted, fontsize=11)
    axes.set_yticks(places, [name for name, _ in rows])
    axes.set_xlim(0, 1.2 * longest)
    axes.grid(axis="y", visible=False)
    return figure
