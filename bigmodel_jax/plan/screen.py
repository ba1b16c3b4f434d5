"""Show a plan on one screen."""

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from bigmodel_jax.report.progress import duration

GIB = 2.0**30
MEMORY = {
    "base": "base",
    "adapters": "adapters",
    "parameters": "parameters",
    "constants": "constants of the objective",
    "average": "averaged parameters",
    "optimizer": "optimizer state",
    "rollout_cache": "cache of rollouts",
    "gradients": "gradients",
    "activations": "saved activations",
    "temporaries": "temporaries",
    "batch": "batch",
    "program": "program",
}


def show(plan: dict, console: Console) -> None:
    """Print a plan: whether it fits, where memory and time go, and what the run costs."""
    print = console.print
    print(f"\n[bold]{plan['name']}[/] on {machine(plan)}\n{facts(plan)}\n", highlight=False)
    print(verdict(plan), highlight=False)
    if "parts" in plan["memory"]:
        both = Table.grid(padding=(0, 3))
        both.add_row(memory_table(plan), time_table(plan))
        print("", both, "", run_table(plan), "", collective_table(plan), sep="\n")
    if not plan["fits"]:
        for block in (largest_table(plan), changes_text(plan)):
            print("", block, sep="\n", highlight=False)
    if note := notes(plan):
        print(f"\n[dim]{note}[/]", highlight=False)


def show_search(found: dict, console: Console, most: int = 8) -> None:
    """Print the ranking of a search, and why the next best layouts are not in it."""
    table = Table("layout", "step", "MFU", "GiB", "tokens/s", box=None, padding=(0, 2, 0, 0))
    for plan in found["ranked"]:
        memory = plan["memory"]["used"] / GIB
        row = (
            plan["title"],
            f"{plan['step_seconds']:.3f}",
            f"{plan['mfu']:.1%}",
            f"{memory:.2f}",
            number(plan["tokens_per_second"]),
        )
        table.add_row(*row)
    count = f"{found['considered']:,} layouts considered, {len(found['ranked'])} compiled and fitting"
    console.print(f"\n[bold]{count}[/]", "", table, "", sep="\n", highlight=False)
    for title, reason in found["rejected"][:most]:
        console.print(f"[dim]not {title}: {reason}[/]", highlight=False)
    if len(found["rejected"]) > most:
        console.print(f"[dim]… and {len(found['rejected']) - most:,} more in search.json[/]", highlight=False)


def machine(plan: dict) -> str:
    """One line: topology, number of chips, mesh."""
    slices = f"{plan['slices']} slices of " if plan["slices"] > 1 else ""
    mesh = " x ".join(f"{axis}={size}" for axis, size in plan["mesh"].items()) or "one device"
    return f"{slices}{plan['topology']}: {plan['chips']:,} chips, mesh {mesh}"


def facts(plan: dict) -> str:
    """One line: model, parameters, batch, precision."""
    constants = f" beside {number(plan['constants'])} constant ones" if plan.get("constants") else ""
    return (
        f"{plan['model']}, {number(plan['parameters'])} parameters{constants}; {plan['batch_size']:,} rows, "
        f"{plan['tokens_per_step']:,} tokens a step; {plan['precision']['compute']} compute, "
        f"{plan['precision']['param']} weights"
    )


def verdict(plan: dict) -> str:
    """One line: whether the program fits, and how much memory is left or missing."""
    memory = plan["memory"]
    if "used" not in memory:
        return f"[bold red]DOES NOT FIT[/] {memory['limit'] / GIB:.2f} GiB a device: {plan['refused']}"
    sizes = f"{memory['used'] / GIB:.2f} of {memory['limit'] / GIB:.2f} GiB a device"
    if plan["fits"]:
        return f"[bold green]FITS[/]  {sizes}; {memory['headroom'] / GIB:.2f} GiB left"
    return f"[bold red]DOES NOT FIT[/]  {sizes}: {-memory['headroom'] / GIB:.2f} GiB too much"


def memory_table(plan: dict, names: dict[str, str] = MEMORY) -> Table:
    """A table of one device's memory: a row and a bar for each kind of content."""
    memory = plan["memory"]
    table = Table("a device's memory", "GiB", "", box=None, padding=(0, 2, 0, 0), title_justify="left")
    table.columns[1].justify = "right"
    for name, text in names.items():
        if name in memory["parts"]:
            share = memory["parts"][name] / memory["limit"]
            table.add_row(text, f"{memory['parts'][name] / GIB:.3f}", bar(share))
    table.add_row("[bold]all[/]", f"[bold]{memory['used'] / GIB:.3f}[/]", bar(memory["used"] / memory["limit"]))
    if memory.get("host"):
        table.add_row("in the host's memory", f"{memory['host'] / GIB:.3f}", "")
    return table


def bar(share: float, width: int = 10) -> str:
    """A horizontal bar of block characters. `share` is between 0 and 1."""
    # A share below one block shows a thin line, so that it does not look like 0.
    return "█" * round(width * min(share, 1.0)) + ("▏" if 0 < round(width * share, 1) < 0.5 else "")


def time_table(plan: dict) -> Table:
    """The time of a step by resource, and three predictions."""
    line = plan["roofline"]
    table = Table("time of a step", "seconds", "", box=None, padding=(0, 2, 0, 0))
    table.columns[1].justify = "right"
    longest = max(line[name] for name in ("compute", "hbm", "ici", "dcn", "step"))
    rows = {"compute": "compute", "hbm": "HBM"}
    rows |= {"expected": "both, as compiled"} if line["expected"] > line["busy"] else {}
    gpu = plan["chip"]["platform"] == "cuda"
    rows |= {"ici": "NVLink", "dcn": "network"} if gpu else {"ici": "between chips", "dcn": "between slices"}
    for name, text in rows.items():
        if line[name]:
            table.add_row(text, f"{line[name]:.4f}", bar(line[name] / longest))
    table.add_row("[bold]predicted[/]", f"[bold]{line['step']:.4f}[/]", bar(line["step"] / longest))
    table.add_row("all hidden", f"{line['hidden']:.4f}", "")
    table.add_row("nothing hidden", f"{line['exposed']:.4f}", "")
    return table


def run_table(plan: dict) -> Table:
    """MFU, tokens per second, FLOPs, and the cost of the whole run."""
    run = plan["run"]
    table = Table.grid(padding=(0, 2))
    flops = plan["flops"]
    table.add_row("MFU", f"{plan['mfu']:.1%} predicted, {plan['mfu_bound']:.1%} at best")
    table.add_row(
        "tokens/s", f"{number(plan['tokens_per_second'])}, {number(plan['tokens_per_second'] / plan['chips'])} a chip"
    )
    counted = flops["counted_per_device"] * plan["devices"]
    useful = f"{flops['model']:.3g} useful" + (
        f", attention {flops['attention'] / flops['model']:.0%}" if flops["attention"] else ""
    )
    table.add_row("FLOPs a step", f"{useful}; {counted:.3g} executed")
    table.add_row("HBM a step", f"{plan['hbm_bytes'] / 1e9:.1f} GB a device")
    for name, text in sampling_rows(plan):
        table.add_row(name, text)
    table.add_row("run", f"{number(run['tokens'])} tokens, {run['steps']:,.0f} steps: {duration(run['seconds'])}")
    price = f"{run['dollars']:,.0f} $ at {run['dollars_per_chip_hour']:.2f} a chip-hour ({run['prices_of']})"
    table.add_row("cost", f"{run['chip_hours']:,.0f} chip-hours, {price}")
    for name, text in failure_rows(plan):
        table.add_row(name, text)
    return table


def sampling_rows(plan: dict) -> list[tuple[str, str]]:
    """(name, text) rows on the time in which answers are sampled.

    There are none without rollouts.
    """
    if "sampling" not in plan:
        return []
    found = plan["sampling"]
    if "refused" in found:
        return [("sampling", f"DOES NOT FIT: {found['refused']}")]
    answers = f"{found['answers']:,} answers of {found['answer']:,} tokens in {found['slots']:,} slots"
    parts = f"prompts {duration(found['prompts_seconds'])}, tokens {duration(found['tokens_seconds'])}"
    return [
        ("sampling", f"{duration(found['step_seconds'])} a step beside its {duration(plan['step_seconds'])}"),
        ("", f"a rollout of {answers} at most: {parts}"),
    ]


def failure_rows(plan: dict) -> list[tuple[str, str]]:
    """(name, text) rows on the run with host failures.

    There are none if the plan has no forecast.
    """
    if "goodput" not in plan:
        return []
    found = plan["goodput"]
    often = f"a failure every {duration(found['job_mtbf_seconds'])} on {found['hosts']:,} hosts"
    every = f"--checkpoint.every {found['save_every_steps']}, {duration(found['save_every_seconds'])}"
    waits = f"a save holds up {duration(found['save_seconds'])}"
    return [
        ("goodput", f"{found['share']:.1%} with {often}"),
        ("save", f"{every}; {waits}"),
        ("", f"on disk after {duration(found['write_seconds'])}; a restart takes {duration(found['restart_seconds'])}"),
        (
            "with failures",
            f"{duration(found['seconds'])}, {number(found['failures'])} failures, {found['dollars']:,.0f} $",
        ),
    ]


def collective_table(plan: dict) -> Table:
    """The six slowest groups of collectives, and the sum of the others."""
    table = Table("axes", "collective", "runs", "GB sent", "seconds", "over", box=None, padding=(0, 2, 0, 0))
    for column in table.columns[2:5]:
        column.justify = "right"
    rows = plan["collectives"]
    for row in rows[:6]:
        kind = row["kind"] + ("" if row["asynchronous"] else ", waited for")
        table.add_row(
            " x ".join(row["axes"]) or "-",
            kind,
            f"{row['runs']:,}",
            f"{row['sent'] / 1e9:.2f}",
            f"{row['seconds']:.4f}",
            row["network"].upper(),
        )
    if len(rows) > 6:
        rest = rows[6:]
        sums = (sum(r[name] for r in rest) for name in ("sent", "seconds"))
        sent, seconds = sums
        table.add_row("", f"{len(rest)} more", "", f"{sent / 1e9:.2f}", f"{seconds:.4f}", "")
    return table


def largest_table(plan: dict) -> Table:
    """The largest buffers at the memory peak."""
    table = Table("largest buffers", "GiB", "from", box=None, padding=(0, 2, 0, 0))
    table.columns[1].justify = "right"
    for row in plan["memory"].get("largest", [])[:6]:
        table.add_row(row["shape"], f"{row['bytes'] / GIB:.2f}", f"{row['source']}  [dim]{row['operation']}[/]")
    return table


def changes_text(plan: dict) -> Panel:
    """The changes that were tried, and the one that makes the program fit."""
    tried = plan["changes"]
    lines = [f"{'fits' if t['fits'] else 'does not fit'}: {t['options']}{size_text(t)}" for t in tried]
    if tried and tried[-1]["fits"]:
        title = f"This makes it fit (compiled): [bold]{tried[-1]['options']}[/]"
    else:
        title = "No single change of those tried makes it fit; more chips, or several changes: plan --search"
    return Panel("\n".join([title, *(f"[dim]{line}[/]" for line in lines)]), expand=False)


def size_text(change: dict) -> str:
    """The memory of a change that was compiled, or why it could not be."""
    return (
        f", {change['used'] / GIB:.2f} GiB"
        if change["used"]
        else f" ({change['reason']})"
        if "reason" in change
        else ""
    )


def notes(plan: dict) -> str:
    """How the plan was made, and what its rates are based on."""
    made = plan["compile"]
    how = "compiled before" if made["cached"] else "compiled now"
    text = f"{how} in {made['seconds']:.0f} s ({made['cpu_seconds']:.0f} CPU-seconds, {made['peak_rss'] / GIB:.1f} GiB)"
    line = plan.get("roofline", {"expected": 0.0, "busy": 0.0})
    stated = " (for matrix products, the compiler's estimates)" if line["expected"] > line["busy"] else ""
    rates = f"Rates are the published ones{stated}; nothing was measured on this machine."
    loops = plan.get("open_ended_loops", 0)
    once = f" Of {loops} loops whose length depends on data, one iteration is counted." if loops else ""
    return f"{text}. {rates} Attention counts as the full square.{once}"


def number(value: float) -> str:
    """A number in three digits with a suffix: 1.23k, 4.56M."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"
