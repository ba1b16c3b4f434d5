"""What verbs share: what a verb says of itself, and how its arguments become a config."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from bigmodel_jax.cluster import join
from bigmodel_jax.cluster.place import ClusterConfig
from bigmodel_jax.core.local_paths import check_local, expanded

# JAX and the rest of the package are imported inside the verbs: `launch.py` and a misspelt verb answer at once.

CONFIG = "a Python file with get_config(), a config.json, or a run's folder"
RUN = "a run's folder, or the config file of a run in runs/"
STEP = "--step        which checkpoint: a step that is kept, or best; else the newest"


class Verb(NamedTuple):
    run: Callable[[Sequence[str]], None]
    usage: str
    summary: str
    details: str
    examples: tuple[str, ...]


def split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what stands before the first option, the rest)."""
    first = next((i for i, a in enumerate(args) if a.startswith("-")), len(args))
    return list(args[:first]), list(args[first:])


def take(options: list[str], *names: str) -> tuple[str, list[str]]:
    """(value of the option of one of these names, the other options); "" where it is not given."""
    at = next((i for i, option in enumerate(options) if option.split("=")[0] in names), None)
    if at is None:
        return "", options
    if "=" in options[at]:
        return options[at].split("=", 1)[1], options[:at] + options[at + 1 :]
    if at + 1 == len(options):
        raise ValueError(f"{options[at]}: its value is missing")
    return options[at + 1], options[:at] + options[at + 2 :]


def take_flag(options: Sequence[str], name: str) -> tuple[bool, list[str]]:
    """(whether the option is given, the others)."""
    return name in options, [option for option in options if option != name]


def asks_for_help(args: Sequence[str]) -> bool:
    return bool({"-h", "--help"} & set(args))


def one_target(verb: str, args: Sequence[str], what: str = "CONFIG") -> tuple[Path, list[str]]:
    targets, options = split(args)
    if len(targets) != 1:
        raise ValueError(f"{verb}: expected one {what}, got {targets}; launch.py {verb} --help shows how")
    return local(verb, targets[0]), options


def local(option: str, path: str) -> Path:
    """The path, ~ expanded; ValueError where it is the address of an object store, or of a user who is not there."""
    check_local(option, path)
    return expanded(option, path)


def parse_config(target: Path, options: list[str], verb: str):
    """(config, run folder): the run's own options beside every field of its config."""
    from bigmodel_jax import config as configs
    from bigmodel_jax.config_checks import check_paths
    from bigmodel_jax.training import run_folder

    loaded = run_folder.load(target)

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        config: Annotated[configs.Config, tyro.conf.arg(name="")]
        run_dir: str = ""  # the run's folder; empty: runs/<name of the config file>

    _check_run_dir(options, target)
    parsed = configs.override(Arguments(loaded), options, prog=f"launch.py {verb} {target}")
    check_paths(parsed.config)
    return parsed.config, local("--run_dir", parsed.run_dir) if parsed.run_dir else run_dir_of(target)


def _check_run_dir(options: list[str], target: Path) -> None:
    """ValueError for an empty --run_dir, such as a variable of a script that is not set: it is no wish for the default."""
    names = ("--run_dir", "--run-dir")
    empty = any(value == "" and name in names for name, value in itertools.pairwise(options))
    if empty or any(f"{name}=" in options for name in names):
        raise ValueError(f"run_dir = ''; it must be a folder; without --run_dir it is {run_dir_of(target)}")


def parse_job(verb: str, args: Sequence[str]):
    """(config, run folder, target) of a verb that several processes may run together: joins their job first, if there
    is one, so that a mistake in the config is said once; returns when all of them have the same config."""
    join.hush(args)
    from bigmodel_jax.config import override

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        cluster: ClusterConfig = ClusterConfig()

    own, rest = [], list(args)
    while (at := next((i for i, a in enumerate(rest) if a.startswith("--cluster.")), None)) is not None:
        end = at + (1 if "=" in rest[at] else 2)
        own, rest = own + rest[at:end], rest[:at] + rest[end:]
    cluster = override(Arguments(), own, prog=f"launch.py {verb} CONFIG").cluster
    if not asks_for_help(rest):
        join.join(cluster)
    target, options = one_target(verb, rest)
    config, run_dir = parse_config(target, options, verb)
    join.agree(config, run_dir, cluster.timeout)
    return config, run_dir, target


def run_dir_of(target: Path) -> Path:
    if target.is_dir():
        return target
    return target.parent if target.name == "config.json" else Path("runs") / target.stem
