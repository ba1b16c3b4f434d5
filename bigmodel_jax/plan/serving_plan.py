"""Make a server's plan from its two compiled programs, as the nested dict in plan.json."""

import dataclasses
import datetime
from pathlib import Path

from bigmodel_jax import config_file
from bigmodel_jax.config import Config
from bigmodel_jax.core import params
from bigmodel_jax.plan import estimate, serving_limits
from bigmodel_jax.plan.compile import Compiled
from bigmodel_jax.plan.roofline import line_of
from bigmodel_jax.plan.serving import Serving
from bigmodel_jax.plan.serving_compile import Say, Server, check, compile_server
from bigmodel_jax.plan.topology import Topology, check_installed


def make_plan(
    config: Config,
    topology: Topology,
    serving: Serving,
    *,
    name: str,
    prices: Path = estimate.PRICES,
    say: Say = lambda text: None,
) -> dict:
    """Answer everything that `launch.py plan --serve` reports.

    Raises ValueError with a one-line message for what cannot be served.
    """
    price = estimate.read_prices(prices, topology)
    check(config, serving, topology)
    check_installed(topology)
    server = compile_server(config, topology, serving, say)
    plan = describe(server, topology, name=name)
    if server.fits(topology):
        plan |= rates(server, topology, price)
        plan["largest"] = most_slots(server, topology, price, say)
    else:
        plan["changes"] = list(serving_limits.changes(server, topology, say))
    return plan


# ------------------------------------------------------------ the content of the plan


def describe(server: Server, topology: Topology, *, name: str) -> dict:
    """The head of a plan: machine, model, server, memory, and whether it fits."""
    config, serving = server.config, server.serving
    first = server.programs["decode"]
    return {
        "kind": "serving",
        "name": name,
        "date": datetime.date.today().isoformat(),
        "topology": topology.name,
        "chip": dataclasses.asdict(topology.chip),
        "chips": topology.chips,
        "devices": topology.devices,
        "mesh": {axis: size for axis, size in first.mesh.items() if size > 1},
        "model": type(config.model).__name__.removesuffix("Config"),
        "parameters": params.count(config.make_model().spec),
        "serving": dataclasses.asdict(serving) | {"prompt": serving.unpadded},
        "weights": stored_as(config, serving),
        "compute": config.precision.compute,
        "fits": server.fits(topology),
        "refused": " ".join(server.refused.split())[:400],
        "memory": memory(server, topology),
        "compile": {name: _compile_facts(one) for name, one in server.programs.items()},
        "config": config_file.to_json(config),
    }


def stored_as(config: Config, serving: Serving) -> str:
    """How the server's weights are stored: as `--weights` says, or as the run stores them."""
    kind = config.quantize.kind
    if serving.weights or kind == "none" or config.quantize.aware:
        return serving.weights or config.precision.compute
    return f"{kind}, as the run stores them"


def _compile_facts(one: Compiled) -> dict:
    names = ("compile_seconds", "cpu_seconds", "peak_rss", "lower_seconds", "cached")
    return {name: getattr(one, name) for name in names}


def memory(server: Server, topology: Topology) -> dict:
    """Bytes of one device by what they hold. `temporaries` is the remainder.

    weights_by_type: bytes of the weights on one device by dtype.
    """
    sizes, used, limit = server.programs["decode"].sizes, server.used, topology.chip.hbm
    parts = {"weights": sizes["weights"], "cache": sizes["cache"]}
    parts["program"] = max(one.memory.get("generated_code", 0.0) for one in server.programs.values())
    parts["temporaries"] = max(0.0, used - sum(parts.values()))
    return {
        "limit": limit,
        "used": used,
        "headroom": limit - used,
        "parts": parts,
        "cache_of_a_slot": sizes["cache"] / server.serving.slots,
        "weights_by_type": {
            name.rpartition(" ")[2]: size for name, size in sizes.items() if name.startswith("weights of ")
        },
        "compiler": {name: one.memory for name, one in server.programs.items()},
    }


def rates(server: Server, topology: Topology, price: dict) -> dict:
    """The roofline of both programs, tokens per second, and cost."""
    out = {name: rate(one, topology, price) for name, one in server.programs.items()}
    serving = server.serving
    # Padding takes no room in a slot, so the answer has all tokens that the prompt leaves.
    answer = serving.length - serving.unpadded
    # A request costs one prefill, which holds up all slots, and its share of the decode steps for
    # its answer.
    busy = out["prefill"]["step_seconds"] + answer * out["decode"]["step_seconds"] / serving.slots
    per_hour = topology.chips * price["price"]
    return out | {
        "requests": {
            "prompt": serving.unpadded,
            "answer": answer,
            "per_second": 1.0 / busy,
            "answer_tokens_per_second": answer / busy,
            "seconds": out["prefill"]["step_seconds"] + answer * busy * serving.slots / answer,
            "dollars_per_thousand": 1000 * busy * per_hour / 3600,
        },
        "dollars_per_chip_hour": price["price"],
        "prices_of": price["date"],
    }


def rate(one: Compiled, topology: Topology, price: dict) -> dict:
    """One program's roofline, tokens per second, and dollars per million tokens."""
    measured, line = one.program["cost"], line_of(one, topology)
    per_second = one.tokens / line.step
    return {
        "tokens": one.tokens,
        "roofline": dataclasses.asdict(line) | {"bound": line.bound},
        "step_seconds": line.step,
        "tokens_per_second": per_second,
        "tokens_per_second_of_a_chip": per_second / topology.chips,
        "dollars_per_million": topology.chips * price["price"] / 3600 / per_second * 1e6,
        "flops_per_device": sum(measured["flops"].values()),
        "hbm_bytes": measured["bytes"],
        "collectives": estimate.by_axes(one.program["collectives"]),
        "slowest": measured["rows"],
    }


def most_slots(server: Server, topology: Topology, price: dict, say: Say) -> dict:
    """The largest batch that fits, its decode rate, and the smallest batch that does not fit.

    Both have been compiled.
    """
    most, above = serving_limits.largest(server, topology, say)
    decoded = rate(most.programs["decode"], topology, price)
    names = ("step_seconds", "tokens_per_second", "dollars_per_million")
    rates = {name: decoded[name] for name in names}
    return {"slots": most.serving.slots, "used": most.used, "does_not_fit": above} | rates
