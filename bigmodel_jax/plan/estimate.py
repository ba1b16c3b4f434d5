"""Make a plan: what the compiled step says about a run, as the nested dict in plan.json."""

import collections
import dataclasses
import datetime
import tomllib
from pathlib import Path

from bigmodel_jax import config_file
from bigmodel_jax.config import Config
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params
from bigmodel_jax.plan import changes, sampling
from bigmodel_jax.plan.compile import Compiled, compile_step, stated_bytes, used_bytes
from bigmodel_jax.plan.failures import Failures, forecast
from bigmodel_jax.plan.roofline import Roofline, line_of
from bigmodel_jax.plan.topology import Topology, check_installed, roomier
from bigmodel_jax.training import epochs

PRICES = Path(__file__).with_name("prices.toml")


def make_plan(
    config: Config,
    topology: Topology,
    *,
    name: str,
    tokens: float = 0.0,
    prices: Path = PRICES,
    failures: Failures = Failures(),
    say=lambda text: None,
) -> dict:
    """Answer everything that `launch.py plan` reports.

    name: the run's name. tokens: tokens of the whole run; 0 means those of train.steps. prices: a
    TOML file like prices.toml. failures: enables the goodput forecast. say: called with one line of
    progress.

    Raises ValueError with a one-line message for a run that cannot be planned.
    """
    table = read_prices(prices, topology)
    validate(config, topology.devices)
    config = epochs.resolve(config)
    check_installed(topology)
    say("Compiling the step")
    compiled = compile_step(config, topology)
    plan = describe(config, topology, compiled, name=name)
    # The compiler reports no memory for a refused program.
    if not compiled.memory:
        plan["memory"] |= refused_memory(config, topology, compiled, say)
    plan |= seen(config, topology, compiled, tokens, table) if compiled.memory else {}
    if "run" in plan:
        plan = sampling.with_sampling(plan, sampling.predict(config, topology, say))
    plan |= forecast(plan, topology, failures)
    if not plan["fits"]:
        plan["changes"] = changes.find(config, topology, say)
    return plan


def describe(config: Config, topology: Topology, compiled: Compiled, *, name: str) -> dict:
    """The head of a plan: machine, model, mesh, memory, and whether the program fits."""
    spec = config.make_model().spec
    used = used_bytes(compiled)
    limit = topology.chip.hbm
    return {
        "name": name,
        "date": datetime.date.today().isoformat(),
        "topology": topology.name,
        "slices": topology.slices,
        "chip": dataclasses.asdict(topology.chip),
        "chips": topology.chips,
        "devices": topology.devices,
        "mesh": {axis: size for axis, size in compiled.mesh.items() if size > 1},
        "model": type(config.model).__name__.removesuffix("Config"),
        "parameters": params.count(spec, trainable=True),
        "constants": params.count(params.of_kind(spec, spec, "constant")),
        "batch_size": config.train.batch_size,
        "tokens_per_step": compiled.tokens,
        "checkpoint_bytes": compiled.sizes["checkpoint"],
        "precision": dataclasses.asdict(config.precision),
        "fits": bool(compiled.memory) and not compiled.refused and used <= limit,
        "refused": " ".join(compiled.refused.split())[:400],
        "memory": memory_parts(compiled, limit) if compiled.memory else {"limit": limit},
        "compile": {
            "seconds": compiled.compile_seconds,
            "cpu_seconds": compiled.cpu_seconds,
            "peak_rss": compiled.peak_rss,
            "lower_seconds": compiled.lower_seconds,
            "cached": compiled.cached,
        },
        "config": config_file.to_json(config),
    }


def memory_parts(compiled: Compiled, limit: float) -> dict:
    """Bytes of one device by what they hold. `temporaries` is the remainder."""
    used, sizes = used_bytes(compiled), compiled.sizes
    saved = compiled.program["memory"]
    trained = "adapters" if sizes["base"] else "parameters"
    parts = {
        "base": sizes["base"],
        trained: sizes["parameters"] - sizes["base"] - sizes["constants"],
        "constants": sizes["constants"],
        "optimizer": sizes["optimizer"],
        "average": sizes["average"],
        "rollout_cache": sizes["rollout_cache"],
        "batch": sizes["batch"],
        "gradients": saved["gradients"],
        "activations": saved["activations"],
        "program": compiled.memory["generated_code"],
    }
    # The parts come from other sources than the total, so their sum may exceed it.
    parts["temporaries"] = max(0.0, used - sum(parts.values()))
    return {
        "limit": limit,
        "used": used,
        "headroom": limit - used,
        "host": sizes["host"],
        "parts": {name: size for name, size in parts.items() if size},
        "compiler": compiled.memory,
        "largest": saved["largest"],
    }


def refused_memory(config: Config, topology: Topology, compiled: Compiled, say) -> dict:
    """Estimate the memory of a refused program from the compiler's message.

    If a chip with more memory exists, compile for it to list the largest buffers.
    """
    sizes = compiled.sizes
    used = stated_bytes(compiled.refused, sum(sizes[name] for name in ("parameters", "optimizer", "average", "batch")))
    used += sizes["rollout_cache"]
    out = {"used": used, "headroom": topology.chip.hbm - used, "largest": []}
    larger = roomier(topology)
    if larger is not None:
        say(f"It does not fit. Compiling for {larger.name}, to see what takes the memory")
        seen_there = compile_step(config, larger)
        if seen_there.memory:
            out |= {"largest": seen_there.program["memory"]["largest"], "largest_on": larger.name}
    return out


def seen(config: Config, topology: Topology, compiled: Compiled, tokens: float, prices: dict) -> dict:
    """FLOPs, memory traffic, roofline, and the cost of the whole run."""
    chip, devices = topology.chip, topology.devices
    measured, line = compiled.program["cost"], line_of(compiled, topology)
    peak = devices * chip.peak(config.precision.compute)
    return {
        "flops": {
            "model": compiled.model_flops,
            "attention": compiled.attention_flops,
            "counted_per_device": sum(measured["flops"].values()),
            "by_type": measured["flops"],
            "kernels_per_device": measured["kernel_flops"],
        },
        "hbm_bytes": measured["bytes"],
        "collectives": by_axes(compiled.program["collectives"]),
        "slowest": measured["rows"],
        "open_ended_loops": measured["open_ended"],
        "roofline": dataclasses.asdict(line) | {"bound": line.bound},
        "step_seconds": line.step,
        "mfu": compiled.model_flops / peak / line.step,
        "mfu_bound": compiled.model_flops / peak / line.hidden,
        "tokens_per_second": compiled.tokens / line.step,
        "run": whole_run(config, topology, compiled, tokens, line, prices),
    }


def by_axes(rows: list[dict]) -> list[dict]:
    """Merge collectives of one kind over the same mesh axes into one row, the slowest first."""
    groups: dict[tuple, list[dict]] = collections.defaultdict(list)
    for row in rows:
        groups[(tuple(row["axes"]), row["kind"], row["network"], row["asynchronous"])].append(row)
    out = [
        {
            "axes": list(axes),
            "kind": kind,
            "network": network,
            "asynchronous": asynchronous,
            "runs": sum(row["count"] for row in members),
            "bytes": sum(row["bytes"] * row["count"] for row in members),
            "sent": sum(row["sent"] for row in members),
            "seconds": sum(row["seconds"] for row in members),
        }
        for (axes, kind, network, asynchronous), members in groups.items()
    ]
    return sorted(out, key=lambda row: -row["seconds"])


def whole_run(config, topology, compiled: Compiled, tokens: float, line: Roofline, prices: dict) -> dict:
    """Steps, seconds, chip-hours and dollars of the run, if no host fails."""
    tokens = tokens or float(compiled.tokens * config.train.steps)
    seconds = tokens / compiled.tokens * line.step
    hours = seconds / 3600 * topology.chips
    return {
        "tokens": tokens,
        "steps": tokens / compiled.tokens,
        "seconds": seconds,
        "chip_hours": hours,
        "dollars_per_chip_hour": prices["price"],
        "dollars": hours * prices["price"],
        "prices_of": prices["date"],
    }


def read_prices(path: Path, topology: Topology) -> dict:
    """Read {"price": dollars per chip-hour, "date": date of the table} from a TOML file.

    Raises ValueError for a missing file or one without the price of this chip.
    """
    if not path.is_file():
        raise ValueError(f"--prices {str(path)!r}: no such file")
    try:
        table = tomllib.loads(path.read_text())
        return {"price": float(table["dollars_per_chip_hour"][topology.chip.name]), "date": str(table["date"])}
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"--prices {str(path)!r}: {error}; it must hold date, and {topology.chip.name} under [dollars_per_chip_hour]"
        ) from error
