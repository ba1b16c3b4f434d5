"""The verb `scale`, which measures how training scales with devices."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from bigmodel_jax.core.options import Unnamed
from bigmodel_jax.core.paths import check_local
from bigmodel_jax.core.ranges import Count
from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.verbs import laws
from bigmodel_jax.verbs.base import CONFIG, Verb, local, one_target, run_dir_of


@dataclasses.dataclass(frozen=True)
class Scale:
    """Options of `scale`, beside the fields of the config."""

    config: Unnamed
    devices: tuple[int, ...] = (1, 2, 4, 8)  # numbers of devices to measure
    layouts: tuple[str, ...] = ("data",)  # meshes, such as data, fsdp or tensor=2,fsdp
    mode: Literal["weak", "strong"] = "weak"  # weak: the batch grows with the devices
    processes: Count = 1  # processes of this machine that share the devices
    topologies: tuple[str, ...] = ()  # machines that are not here, which are planned
    windows: Count = 10  # timed windows per point
    steps: Count = 5  # steps of a window
    coordinates: tuple[Count, ...] = ()  # multiples of the widths of mup.base to check
    run_dir: str = ""  # the folder to write; empty: runs/<name>-scale


def scale(args: Sequence[str]) -> None:
    """Runs the verb `scale`: measures the points and writes a page.

    It also runs `--law` and `--coordinates`.
    """
    if args[:1] == [laws.LAW]:
        return laws.law(args[1:])
    check_local("scale", args[0])
    target, options = one_target("scale", args)
    from bigmodel_jax import config as configs
    from bigmodel_jax import config_file
    from bigmodel_jax.config_checks import check_paths
    from bigmodel_jax.plan import topology as topologies
    from bigmodel_jax.scaling.benchmark import scale as run
    from bigmodel_jax.scaling.points import make_points, planned_points
    from bigmodel_jax.training import epochs

    parsed = configs.parse(Scale(config_file.load(target)), options, prog=f"launch.py scale {target}")
    check_paths(parsed.config)
    config = epochs.resolve(parsed.config)
    if parsed.coordinates:
        return _coordinates(config, parsed, target)
    machines = [topologies.parse_slices(name) for name in parsed.topologies]
    for machine in machines:
        topologies.check_installed(machine)
    points = make_points(config, parsed.devices, parsed.layouts, parsed.mode, parsed.processes)
    points += planned_points(config, machines, parsed.layouts, parsed.mode)
    name = run_dir_of(target)
    run_dir = local("scale: --run_dir", parsed.run_dir) if parsed.run_dir else name.with_name(f"{name.name}-scale")
    page = run(points, run_dir, topologies=machines, windows=parsed.windows, steps=parsed.steps, console=make_console())
    print(page)


def _coordinates(config, parsed: Scale, target) -> None:
    """Runs the coordinate check of muP: how activations grow with width after a few steps."""
    from bigmodel_jax.scaling.coordinates import check, growth

    name = run_dir_of(target)
    folder = local("scale: --run_dir", parsed.run_dir or str(name.with_name(f"{name.name}-coordinates")))
    if len(set(parsed.coordinates)) < 2:
        raise ValueError(
            f"--coordinates {parsed.coordinates}; it must be two different numbers or more, such as 1 2 4 8"
        )
    found = check(config, sorted(set(parsed.coordinates)), parsed.steps, folder)
    for form, widths in found.items():
        for name in next(iter(widths.values())):
            print(f"{form}: after {parsed.steps} steps {name} grows as width to the power {growth(widths, name):+.2f}")
    print(folder)


VERBS = {
    "scale": Verb(
        scale,
        "scale CONFIG [--devices N ...] [--layouts L ...]",
        "measure how a config scales with devices",
        f"CONFIG        {CONFIG}\n"
        "--devices     numbers of devices to measure; on a CPU the devices are virtual\n"
        "--layouts     meshes, such as data, fsdp or tensor=2,fsdp; an axis without a\n"
        "              number takes the remaining devices\n"
        "--mode        weak (default): train.batch_size is for the fewest devices and\n"
        "              grows with their number; strong: it stays the same\n"
        "--topologies  machines that are not here, planned with their compiler, such as\n"
        "              v5e:16x16, or 4xv5e:16x16 for four slices of it\n"
        "--processes   processes of this machine that share the devices\n"
        "--windows     timed windows per point; --steps: steps of one window\n"
        "--run_dir     where scale.jsonl, scale.html and plots/ go; runs/<name>-scale\n"
        "--FIELD       any field of the config by its dotted name\n\n"
        "`report` compares several such folders.\n\n"
        "--coordinates 1 2 4 8: the coordinate check of μP with these multiples of the\n"
        "              widths of mup.base: the size of activations after --steps steps\n"
        "--law RUN ... fits loss = E + A / N^alpha + B / D^beta to finished runs, over\n"
        "              parameters N and tokens D, and writes a page\n"
        "--expect      with --law: N,D of runs to predict, such as 1e9,2e10; without it:\n"
        "              the best split of 10 and 100 times the largest run's FLOPs\n"
        "--samples     with --law: bootstrap samples; --output: the page, law.html",
        (
            "scale configs/lm_tiny.py --layouts data fsdp",
            "scale configs/lm_tiny.py --mode strong --processes 2 --devices 2 4",
            "scale configs/lm_tiny.py --optim.name adamw --mup.base embed_dim=64 mlp_dim=192 --coordinates 1 2 4",
            "scale --law runs/s runs/m runs/l runs/s2 runs/m2 runs/l2 --expect 1e9,2e10",
            "scale configs/llama3_8b.py --devices --topologies v5e:8x8 v5e:16x16 --layouts fsdp",
        ),
    ),
}
