"""Show the plan of a server on one screen."""

from rich.console import Console
from rich.table import Table

from bigmodel_jax.plan.screen import GIB, changes_text, collective_table, memory_table, number, verdict
from bigmodel_jax.report.progress import duration

PARTS = {
    "weights": "weights",
    "cache": "cache of keys and values",
    "temporaries": "temporaries",
    "program": "program",
}


def show(plan: dict, console: Console) -> None:
    """Print a plan: whether it fits, a device's memory, both programs' speed, and cost."""
    print = console.print
    print(f"\n[bold]{plan['name']}[/] served on {machine(plan)}\n{facts(plan)}\n", highlight=False)
    print(verdict(plan), "", memory_table(plan, PARTS), sep="\n", highlight=False)
    if "decode" in plan:
        print("", rate_table(plan), "", answer_table(plan), sep="\n", highlight=False)
        if plan["decode"]["collectives"]:
            print("", collective_table(plan["decode"]), sep="\n", highlight=False)
    if "changes" in plan:
        print("", changes_text(plan), sep="\n", highlight=False)
    print(f"\n[dim]{notes(plan)}[/]", highlight=False)


def machine(plan: dict) -> str:
    """One line: topology, number of chips, mesh."""
    mesh = " x ".join(f"{axis}={size}" for axis, size in plan["mesh"].items()) or "one device"
    return f"{plan['topology']}: {plan['chips']:,} chip{'s' * (plan['chips'] > 1)}, mesh {mesh}{cuts(plan['mesh'])}"


def cuts(mesh: dict[str, int]) -> str:
    """What is sharded over which mesh axis."""
    what = {"tensor": "weights cut over tensor", "data": "slots over data", "fsdp": "slots and weights over fsdp"}
    said = [text for axis, text in what.items() if axis in mesh]
    return f" ({', '.join(said)})" if said else ""


def facts(plan: dict) -> str:
    """Two lines: model and storage of its weights, then slots and prompts."""
    serving = plan["serving"]
    blocks = (
        f" in blocks of {serving['block']}" if serving["block"] and plan["weights"] in ("int8", "int4", "nf4") else ""
    )
    return (
        f"{plan['model']}, {number(plan['parameters'])} parameters; weights in {plan['weights']}{blocks}, "
        f"{plan['compute']} compute\n{serving['slots']:,} slots of {serving['length']:,} tokens; prompts of "
        f"{serving['prompt']:,}"
    )


def rate_table(plan: dict) -> Table:
    """The times and rates of both programs, one column each."""
    columns = ("decode", "prefill")
    table = Table("", "decode, a token a slot", "prefill, a prompt", box=None, padding=(0, 3, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"

    def row(text: str, of) -> None:
        table.add_row(text, *(of(plan[name]) for name in columns))

    gpu = plan["chip"]["platform"] == "cuda"
    row("compute", lambda one: duration(one["roofline"]["compute"]))
    row("HBM", lambda one: duration(one["roofline"]["hbm"]))
    row("both, as compiled", lambda one: duration(one["roofline"]["expected"]))
    for network, text in (("ici", "NVLink" if gpu else "between chips"), ("dcn", "network")):
        if any(plan[name]["roofline"][network] for name in columns):
            row(text, lambda one, network=network: duration(one["roofline"][network]))
    row("[bold]predicted[/]", lambda one: f"[bold]{duration(one['step_seconds'])}[/]")
    row("tokens/s", lambda one: number(one["tokens_per_second"]))
    row("tokens/s a chip", lambda one: number(one["tokens_per_second_of_a_chip"]))
    row("$ per million tokens", lambda one: f"{one['dollars_per_million']:.3g}")
    return table


def answer_table(plan: dict) -> Table:
    """Requests per second, their cost, and the largest batch."""
    table = Table.grid(padding=(0, 2))
    requests, most = plan["requests"], plan["largest"]
    table.add_row(
        "requests",
        f"{requests['per_second']:.3g} a second of {requests['prompt']:,} + {requests['answer']:,} tokens, "
        f"{number(requests['answer_tokens_per_second'])} tokens/s of answers",
    )
    table.add_row("cost", f"{requests['dollars_per_thousand']:.3g} $ a thousand of them, {price(plan)}")
    table.add_row("largest batch", largest(most))
    table.add_row("", f"{number(most['tokens_per_second'])} tokens/s, {most['dollars_per_million']:.3g} $ per million")
    return table


def price(plan: dict) -> str:
    """The price of a chip-hour and the date of the price table."""
    return f"at {plan['dollars_per_chip_hour']:.2f} a chip-hour ({plan['prices_of']})"


def largest(most: dict) -> str:
    """A phrase with the largest number of slots that fit, and the smallest number that does not
    fit.
    """
    above = f"; {most['does_not_fit']:,} do not" if most["does_not_fit"] else ""
    return f"{most['slots']:,} slots fit, {most['used'] / GIB:.2f} GiB a device{above}"


def notes(plan: dict) -> str:
    """How the plan was made, and what its rates leave out."""
    seconds = sum(one["compile_seconds"] for one in plan["compile"].values())
    how = "compiled before" if all(one["cached"] for one in plan["compile"].values()) else "compiled now"
    return (
        f"{how} in {seconds:.0f} s. Rates are the published ones (on a TPU: the compiler's for each instruction, where they "
        "are lower). Nothing was measured. The host's time and the latency of each transfer between chips are not included."
    )
