"""A plan of a server: what the engine's two compiled programs say, as one nested dict that plan.json holds."""

import dataclasses
import datetime
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bigmodel_jax import config_file
from bigmodel_jax.config import Config
from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import AXES, ParallelConfig, factor
from bigmodel_jax.plan import estimate
from bigmodel_jax.plan.chips import GIB
from bigmodel_jax.plan.compile import Compiled, ask, read, root, used_bytes
from bigmodel_jax.plan.serving import Serving, for_options, stored_spec
from bigmodel_jax.plan.topology import Topology, check_installed, divisors

PROGRAMS = ("decode", "prefill")
TRIES = 4  # sizes that are compiled in search of the largest that fits
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Server:
    """Both programs, compiled. used: bytes of a device's memory that the larger one needs."""

    config: Config
    serving: Serving
    programs: dict[str, Compiled]

    @property
    def refused(self) -> str:
        return next((one.refused for one in self.programs.values() if one.refused), "")

    @property
    def used(self) -> float:
        """Of a program that was refused, what its arguments take and the compiler's message says of its temporaries."""
        return max(used_bytes(one) if one.memory else _refused_bytes(one) for one in self.programs.values())

    def fits(self, topology: Topology) -> bool:
        return not self.refused and self.used <= topology.chip.hbm


def _refused_bytes(one: Compiled) -> float:
    need = re.search(r"temporaries \(([\d.]+)G\)", one.refused)
    return one.sizes["weights"] + one.sizes["cache"] + (float(need[1]) * GIB if need else 0.0)


def make_plan(
    config: Config,
    topology: Topology,
    serving: Serving,
    *,
    name: str,
    prices: Path = estimate.PRICES,
    say: Say = lambda text: None,
) -> dict:
    """Everything that `launch.py plan --serve` answers. ValueError, one line, for what cannot be served."""
    price = estimate.read_prices(prices, topology)
    check(config, serving, topology)
    check_installed(topology)
    server = compile_server(config, topology, serving, say)
    plan = describe(server, topology, name=name)
    if server.fits(topology):
        plan |= rates(server, topology, price)
        plan["largest"] = largest(server, topology, price, say)
    else:
        plan["changes"] = list(changes(server, topology, say))
    return plan


# ------------------------------------------------------------------------------------------------ what is compiled


def with_layout(config: Config, topology: Topology) -> Config:
    """The config with the mesh of its server: as its options say, where they say more than `for_options`; else the weights
    cut over all devices (`tensor`), or over as many as the model's sizes allow, and the slots over the rest."""
    parallel = config.parallel
    if config != for_options(config):
        return config
    meshes = [
        dataclasses.replace(parallel, data=topology.devices // n, tensor=n) for n in divisors(topology.devices)[::-1]
    ]
    fitting = (mesh for mesh in meshes if not _wrong(config, mesh))
    return dataclasses.replace(config, parallel=next(fitting, meshes[-1]))


def _wrong(config: Config, parallel: ParallelConfig) -> str:
    try:
        config.model.validate(parallel)
    except ValueError as error:
        return str(error)
    return ""


def check(config: Config, serving: Serving, topology: Topology) -> None:
    """ValueError for what can be known to be wrong before anything is compiled."""
    sizes = dict(zip(AXES, factor(config.parallel, topology.devices), strict=True))
    model = config.make_model()
    if model.make_cache is None:
        raise ValueError(f"--serve: {type(config.model).__name__} has no decode cache, so it cannot generate")
    if sizes["stage"] > 1:
        raise ValueError(f"parallel.stage = {sizes['stage']}: texts are generated without a pipeline")
    config.model.validate(dataclasses.replace(config.parallel, **sizes))
    most = getattr(config.model, "max_seq_len", serving.length)
    if serving.length > most:
        raise ValueError(
            f"--length {serving.length}: model.max_seq_len is {most}; --model.max_seq_len {serving.length} plans a longer one"
        )
    if serving.prompt >= serving.length:
        raise ValueError(f"--prompt {serving.prompt}: it must leave room for an answer in --length {serving.length}")
    rows = sizes["data"] * sizes["fsdp"] * sizes["expert"]
    if serving.slots % rows:
        raise ValueError(f"--slots {serving.slots} is not divisible by the {rows} devices over which the slots are cut")
    stored_spec(config, serving)


def compile_server(config: Config, topology: Topology, serving: Serving, say: Say) -> Server:
    programs = {}
    for name in PROGRAMS:
        say(f"Compiling {name} of {serving.slots} slots")
        programs[name] = compile_program(config, topology, serving, name)
        if programs[name].refused:
            break
    return Server(config, serving, programs)


def compile_program(config: Config, topology: Topology, serving: Serving, program: str) -> Compiled:
    """One of PROGRAMS for `topology`; from the cache where the same was compiled before. ValueError, one line, where it
    cannot be compiled."""
    root().mkdir(parents=True, exist_ok=True)
    request = {
        "config": config_file.to_json(config),
        "topology": topology.name,
        "serving": dataclasses.asdict(serving),
        "program": program,
        "cache": str(root()),
    }
    begun = time.perf_counter()
    answer = ask("bigmodel_jax.plan.serving_worker", request, topology.chip.platform)
    if "mistake" in answer:
        raise ValueError(answer["mistake"])
    return read(answer, time.perf_counter() - begun)


# ------------------------------------------------------------------------------------------------ what it says


def describe(server: Server, topology: Topology, *, name: str) -> dict:
    """What is planned, whether it fits, and how it was found out."""
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
        "serving": dataclasses.asdict(serving) | {"prompt": serving.prompt_tokens},
        "weights": serving.weights or config.precision.compute,
        "compute": config.precision.compute,
        "fits": server.fits(topology),
        "refused": " ".join(server.refused.split())[:400],
        "memory": memory(server, topology),
        "compile": {name: _compile_facts(one) for name, one in server.programs.items()},
        "config": config_file.to_json(config),
    }


def _compile_facts(one: Compiled) -> dict:
    names = ("compile_seconds", "cpu_seconds", "peak_rss", "lower_seconds", "cached")
    return {name: getattr(one, name) for name in names}


def memory(server: Server, topology: Topology) -> dict:
    """Bytes of a device by what they hold; `temporaries` is what the others leave. weights_by_type: of one device."""
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
    """The roofline of both programs, tokens per second, and what they cost."""
    out = {name: rate(one, topology, price) for name, one in server.programs.items()}
    serving, prompt = server.serving, server.serving.prompt_tokens
    answer = serving.length - prompt
    # A prefill stands between two steps of all slots: a request takes one, and its share of the steps of its answer.
    busy = out["prefill"]["step_seconds"] + answer * out["decode"]["step_seconds"] / serving.slots
    per_hour = topology.chips * price["price"]
    return out | {
        "requests": {
            "prompt": prompt,
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
    """Of one program: its roofline, its tokens per second, and dollars per million of them."""
    measured, line = one.program["cost"], estimate.line_of(one, topology)
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


# ------------------------------------------------------------------------------------------------ how many slots


def largest(server: Server, topology: Topology, price: dict, say: Say) -> dict:
    """The most slots that were compiled and fit, the fewest that were and do not, and the rate of decoding with them."""
    low, high, tried = server, 0, {server.serving.slots: server.used}
    while len(tried) < TRIES and (slots := _next(low, high, tried, topology)) not in tried:
        found = compile_server(server.config, topology, dataclasses.replace(server.serving, slots=slots), say)
        tried[slots] = found.used
        if found.fits(topology):
            low = found
        else:
            high = slots
    decoded = rate(low.programs["decode"], topology, price)
    return {
        "slots": low.serving.slots,
        "used": low.used,
        "does_not_fit": high,
        **{name: decoded[name] for name in ("step_seconds", "tokens_per_second", "dollars_per_million")},
    }


def _next(low: Server, high: int, tried: dict[int, float], topology: Topology) -> int:
    """The slots to try: where the line through what was compiled meets the limit, in whole steps, and below `high`."""
    slots, room = low.serving.slots, topology.chip.hbm - low.used
    others = [n for n in tried if n != slots]
    of_a_slot = low.programs["decode"].sizes["cache"] / slots
    if others:
        near = min(others, key=lambda n: abs(n - slots))
        of_a_slot = max(of_a_slot, (tried[near] - low.used) / (near - slots))
    step = _step(low)
    guess = slots + int(room / of_a_slot) // step * step
    return max(slots, min(guess, high - step) if high else guess)


def _step(server: Server) -> int:
    """Slots by which sizes are tried: whole rows of the mesh, and an eighth of what is there."""
    mesh, slots = server.programs["decode"].mesh, server.serving.slots
    rows = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    return rows * max(1, slots // rows // 8)


# ------------------------------------------------------------------------------------------------ what would make it fit


def changes(server: Server, topology: Topology, say: Say) -> Iterator[dict]:
    """Single changes, each compiled, up to the first that fits: fewer slots, narrower weights, a shorter length, another
    mesh."""
    for options, config, serving in candidates(server, topology):
        say(f"Trying {options}")
        try:
            check(config, serving, topology)
            found = compile_server(config, topology, serving, say)
        except ValueError as error:
            yield {"options": options, "fits": False, "used": 0.0, "reason": str(error)}
            continue
        yield {"options": options, "fits": found.fits(topology), "used": found.used}
        if found.fits(topology):
            return


def candidates(server: Server, topology: Topology) -> Iterator[tuple[str, Config, Serving]]:
    config, serving = server.config, server.serving
    sizes = server.programs["decode"].sizes
    room = topology.chip.hbm - (server.used - sizes["cache"])
    mesh = server.programs["decode"].mesh
    rows = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    fewer = int(0.95 * room / (sizes["cache"] / serving.slots)) // rows * rows if room > 0 else 0
    if 0 < fewer < serving.slots:
        yield f"--slots {fewer}", config, dataclasses.replace(serving, slots=fewer)
    if mesh["tensor"] < topology.devices:
        parallel = ParallelConfig(data=1, tensor=topology.devices, rules=config.parallel.rules)
        options = f"--parallel.data 1 --parallel.tensor {topology.devices}"
        yield options, dataclasses.replace(config, parallel=parallel), serving
    now = serving.weights or config.precision.compute
    order = ("float32", "bfloat16", "int8", "int4")
    for weights in order[order.index(now) + 1 :] if now in order else ():
        yield f"--weights {weights}", config, dataclasses.replace(serving, weights=weights)
    if serving.length > 1024:
        shorter = dataclasses.replace(serving, length=serving.length // 2, prompt=serving.prompt // 2)
        yield f"--length {shorter.length}", config, shorter
