"""The verb `plan`, which predicts what a run or a server needs before it starts."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from bigmodel_jax.core import files
from bigmodel_jax.core.options import Unnamed
from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.verbs.base import CONFIG, Verb, local, one_target

DOES_NOT_FIT = 3  # the exit code of a plan that does not fit in memory


@dataclasses.dataclass(frozen=True)
class Plan:
    """Options of `plan`, beside the fields of the config."""

    config: Unnamed
    topology: str = ""  # the machine, such as v5e:16x16
    slices: int = 1  # the number of slices, connected by the data-centre network
    tokens: float = 0.0  # tokens of the whole run; 0: those of train.steps
    prices: str = ""  # a table of prices (TOML); empty: plan/prices.toml
    output: str = ""  # the folder to write; empty: plans/<config>_<topology>
    search: bool = False  # search for the best mesh, remat, microbatches and offload
    compiles: int = 8  # how many layouts a search compiles
    workers: int = 0  # processes that compile at the same time; 0: one per core
    failures: Unnamed = None
    serve: str = ""  # the machine of a server, as --topology
    serving: Unnamed = None


def plan(args: Sequence[str]) -> None:
    """Runs the verb `plan`: prints and writes a plan. The exit code is 3 where it does not fit."""
    target, options = one_target("plan", args)
    os.environ["JAX_PLATFORMS"] = "cpu"  # this process only traces shapes, so accelerators stay free
    from bigmodel_jax import config as configs
    from bigmodel_jax import config_file
    from bigmodel_jax.config_checks import check_paths
    from bigmodel_jax.plan import topology as topologies
    from bigmodel_jax.plan.failures import Failures, check
    from bigmodel_jax.plan.serving import Serving, for_options

    config = config_file.load(target)
    # A server's default mesh is not that of training, so --serve is looked for before parsing.
    served = any(option.split("=")[0] == "--serve" for option in options)
    own = Plan(for_options(config) if served else config, failures=Failures(), serving=Serving())
    given = configs.parse(own, options, prog=f"launch.py plan {target}")
    if served:
        return _serve(given, target)
    if given.serving != Serving():
        raise ValueError(
            "--slots, --length, --prompt, --weights and --block need --serve NAME, such as --serve v5e:2x4"
        )
    check(given.failures)
    topology = topologies.parse(given.topology or _missing(), given.slices)
    config = topologies.sliced(given.config, given.slices)
    if not given.search:
        topologies.check_mesh(config.parallel, topology)
    name = _name(target)
    check_paths(config)
    folder = local(
        "plan: --output", given.output or f"plans/{name}_{topology.title.replace(' ', '').replace(':', '-')}"
    )
    found = (_search if given.search else _plan)(config, topology, given, name, folder, target)
    if not found["fits"]:
        raise SystemExit(DOES_NOT_FIT)


def _name(target: Path) -> str:
    return target.parent.name if target.name == "config.json" else target.stem


def _serve(given: Plan, target: Path) -> None:
    """Plans a server."""
    from bigmodel_jax.config_checks import check_paths
    from bigmodel_jax.plan import estimate, serving_compile, serving_plan, serving_screen
    from bigmodel_jax.plan import topology as topologies
    from bigmodel_jax.plan.failures import Failures
    from bigmodel_jax.report.serving_page import build_serving_page

    of_training = ("topology", "slices", "tokens", "search", "compiles", "workers")
    if wrong := [name for name in of_training if getattr(given, name) != getattr(Plan(None), name)]:
        raise ValueError(f"--{wrong[0]} belongs to a plan of training; leave it out with --serve {given.serve}")
    if given.failures != Failures():
        raise ValueError(f"--mtbf belongs to a plan of training; leave it out with --serve {given.serve}")
    topology, name, console = topologies.parse(given.serve, option="--serve"), _name(target), make_console()
    config = serving_compile.with_layout(given.config, topology)
    topologies.check_mesh(config.parallel, topology)
    check_paths(config)
    machine = topology.title.replace(":", "-")
    folder = local("plan: --output", given.output or f"plans/{name}_served_{machine}")
    with console.status("") as status:
        found = serving_plan.make_plan(
            config,
            topology,
            given.serving,
            name=name,
            prices=local("plan: --prices", given.prices) if given.prices else estimate.PRICES,
            say=lambda text: status.update(f"{text} …"),
        )
    serving_screen.show(found, console)
    _write(found, folder, console, build_serving_page)
    if not found["fits"]:
        raise SystemExit(DOES_NOT_FIT)


def _plan(config, topology, given, name: str, folder: Path, target: Path) -> dict:
    """Plans one layout of a training run."""
    from bigmodel_jax.plan import estimate, screen

    console = make_console()
    prices = local("plan: --prices", given.prices) if given.prices else estimate.PRICES
    with console.status("") as status:
        found = estimate.make_plan(
            config,
            topology,
            name=name,
            tokens=given.tokens,
            prices=prices,
            failures=given.failures,
            say=lambda text: status.update(f"{text} …"),
        )
    screen.show(found, console)
    _write(found, folder, console)
    return found


def _search(config, topology, given, name: str, folder: Path, target: Path) -> dict:
    """Searches for the best layout, and writes its config file and its plan."""
    from bigmodel_jax.plan import estimate, screen, search
    from bigmodel_jax.plan.failures import forecast
    from bigmodel_jax.plan.topology import check_installed
    from bigmodel_jax.training import epochs

    console = make_console()
    prices = estimate.read_prices(local("plan: --prices", given.prices) if given.prices else estimate.PRICES, topology)
    check_installed(topology)

    def describe(config, compiled):
        plan = estimate.describe(config, topology, compiled, name=name)
        return plan | (estimate.seen(config, topology, compiled, given.tokens, prices) if compiled.memory else {})

    with console.status("") as status:
        found = search.search(
            epochs.resolve(config),
            topology,
            describe=describe,
            compiles=given.compiles,
            workers=given.workers,
            say=lambda text: status.update(f"{text} …"),
        )
    screen.show_search(found, console)
    folder.mkdir(parents=True, exist_ok=True)
    files.replace(folder / "search.json", json.dumps(found, indent=1) + "\n")
    if not found["ranked"]:
        return {"fits": False}
    best = found["ranked"][0]
    best |= forecast(best, topology, given.failures)
    path = folder / f"{name}_best.py"
    search.write_config(path, target, best, f"{name} on {topology.title}: {best['title']}.")
    screen.show(best, console)
    console.print(f"\nConfig: {path}", highlight=False, soft_wrap=True)
    _write(best, folder, console)
    return best


def _write(plan: dict, folder: Path, console: Console, build: Callable | None = None) -> None:
    from bigmodel_jax.report.plan_page import build_plan_page

    folder.mkdir(parents=True, exist_ok=True)
    files.replace(folder / "plan.json", json.dumps(plan, indent=1) + "\n")
    page = (build or build_plan_page)(plan, folder)
    console.print(f"\nPlan: {page}", highlight=False, soft_wrap=True)


def _missing() -> str:
    raise ValueError("plan: --topology is missing, such as --topology v5e:16x16 or --topology h100:1x8x8")


VERBS = {
    "plan": Verb(
        plan,
        "plan CONFIG --topology NAME | --serve NAME [...]",
        "predict what a run or a server needs on a machine",
        f"CONFIG        {CONFIG}\n"
        "--topology    v4:4x4x4, v5e:16x16, v5p:4x4x8, v6e:16x16, tpu7x:4x4x4: chips along\n"
        "              each axis of a slice; a100, h100, h200, b200:1x8x8: 8 hosts of 8 GPUs\n"
        "--slices      the number of slices, connected by the data-centre network\n"
        "--tokens      tokens of the whole run; without it: those of train.steps\n"
        "--prices      a table of prices (TOML); without it: plan/prices.toml\n"
        "--output      the folder to write; without it: plans/<config>_<topology>\n"
        "--search      finds the best mesh, remat, microbatches and offload\n"
        "--compiles    how many layouts a search compiles; without it: 8\n"
        "--workers     processes that compile at the same time; without it: one per core\n"
        "--mtbf        mean HOURS between failures of ONE host (with N hosts the job fails N\n"
        "              times as often); predicts the goodput, which is the time of steps\n"
        "              that count / wall time, and the best save interval. With it:\n"
        "  --storage          GB/s per host to and from the checkpoints; without it: 1\n"
        "  --save_seconds     time that steps wait for a save; without it: 1 second, and\n"
        "                     the copy to the host\n"
        "  --restart_minutes  from a failure to the next start's restore; without it: 10\n"
        "--serve       a machine, as --topology: plans a server instead of a run. With it:\n"
        "  --slots            texts at the same time; without it: 16\n"
        "  --length           tokens of a prompt and its answer; without it: 2048\n"
        "  --prompt           tokens of a prompt; without it: half of --length\n"
        "  --weights          float32, bfloat16, int8, int4 or nf4; without it: as the\n"
        "                     config computes\n"
        "  --block            weights that share one scale; without it: 256 for int8, 32 for\n"
        "                     int4, otherwise 64\n\n"
        "Compiles the train step, or a server's prefill and decode, with the machine's own\n"
        "compiler. The folder gets plan.json and plan.html. The exit code is 0 where the\n"
        "plan fits in memory, and 3 where it does not.",
        (
            "plan configs/llama3_8b.py --topology v5e:16x16",
            "plan configs/llama3_8b.py --topology v5p:4x4x8 --data.seq_len 8192",
            "plan configs/llama3_8b.py --topology v5e:16x16 --search",
            "plan configs/llama3_8b.py --topology v5e:16x16 --mtbf 5000",
            "plan configs/llama3_8b.py --serve v5e:2x4 --slots 64 --length 8192 --weights int8",
        ),
    ),
}
