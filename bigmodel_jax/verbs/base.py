"""What verbs share: the description of a verb, and the parsing of its arguments into a config."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bigmodel_jax.cluster import join
from bigmodel_jax.cluster.place import ClusterConfig
from bigmodel_jax.core import mirror, paths
from bigmodel_jax.core.options import Unnamed, asks_for_help, parse_known
from bigmodel_jax.core.terminal import make_console

# JAX and the rest of the package are imported inside the verbs, so that `launch.py` alone and a
# misspelt verb answer at once.

CONFIG = "a Python file with get_config(), a config.json, or a run's folder"
RUN = "a run's folder, or the config file of a run in runs/"
ADAPTER = "--adapter     the adapters to use: NAME or NAME,NAME; without it: all of the run's"
STEP = "--step        the checkpoint: a step that is kept, or best; without it: the newest"


class Verb(NamedTuple):
    """One verb of the command line.

    run: takes the arguments after the verb; usage, summary, details, examples: its help.
    """

    run: Callable[[Sequence[str]], None]
    usage: str
    summary: str
    details: str
    examples: tuple[str, ...]


def split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the arguments before the first option, the rest)."""
    first = next((i for i, a in enumerate(args) if a.startswith("-")), len(args))
    return list(args[:first]), list(args[first:])


def one_target(verb: str, args: Sequence[str], what: str = "CONFIG") -> tuple[Path, list[str]]:
    """(the path of the verb's one target, the options).

    Raises ValueError for no target or for several.

    what: the target's name in messages: CONFIG, RUN or SOURCE. A SOURCE must not be the address of
    an object store.
    """
    targets, options = split(args)
    if len(targets) != 1:
        raise ValueError(f"{verb}: expected one {what}, got {targets}; launch.py {verb} --help shows how")
    return (local if what == "SOURCE" else place)(verb, targets[0]), options


def local(option: str, path: str) -> Path:
    """The path with ~ expanded.

    Raises ValueError for an object store's address and for an unknown user's home.

    option: the option or verb that the path belongs to, for messages.
    """
    paths.check_local(option, path)
    return paths.expanded(option, path)


def local_page(option: str, path: str) -> Path:
    """Like `local`, for a page whose numbers go to a .json file of the same name, which it must not
    be itself."""
    if path.endswith(".json"):
        raise ValueError(f"{option} = {path!r}: the page's numbers go to that file; name the page, such as page.html")
    return local(option, path)


def place(option: str, path: str) -> Path:
    """Like `local`, but also takes a run's folder, or its config.json, in a bucket.

    It downloads the folder again, and returns the copy on this machine.
    """
    if not paths.is_remote(path):
        return local(option, path)
    paths.check(option, path, ("gs",))
    if path.endswith(".py"):
        raise ValueError(f"{option} = {path!r}: a config file is imported on this machine alone; copy it here")
    here = mirror.folder(path.removesuffix("/config.json"))
    mirror.pull(here)
    return here / "config.json" if path.endswith("/config.json") else here


@dataclasses.dataclass(frozen=True)
class OfConfig:
    """The base of a verb's own options. All fields of the config are options as well."""

    config: Unnamed = None
    run_dir: str | None = None  # the run's folder; None: runs/<name of the config file>


@dataclasses.dataclass(frozen=True)
class OfJob(OfConfig):
    """The base of the options of a verb that several processes may run together."""

    cluster: ClusterConfig = ClusterConfig()


def parse_config(own: OfConfig, target: Path, options: Sequence[str], verb: str):
    """(`own` with the values of its options and of its config, the run's folder)."""
    from bigmodel_jax import config as configs
    from bigmodel_jax.config_checks import check_paths
    from bigmodel_jax.training import run_folder

    loaded = dataclasses.replace(own, config=run_folder.load(target))
    given = configs.parse(loaded, options, prog=f"launch.py {verb} {target}")
    # An empty value may come from an unset variable of a script, so it does not mean the default.
    if given.run_dir == "":
        raise ValueError(f"run_dir = ''; it must be a folder; without --run_dir it is {run_dir_of(target)}")
    check_paths(given.config)
    return given, place("--run_dir", given.run_dir) if given.run_dir else run_dir_of(target)


def parse_job(own: OfJob, verb: str, args: Sequence[str]):
    """Like `parse_config`, but returns the target too, and joins the job of several processes if
    there is one.

    The job is joined first, so that only one process reports a mistake in the config. It returns
    when all processes have the same config.
    """
    cluster = parse_known(own, args, prog=f"launch.py {verb} CONFIG")[0].cluster
    join.hush(cluster)
    if not asks_for_help(args):
        join.join(cluster)
    target, options = one_target(verb, args)
    given, run_dir = parse_config(own, target, options, verb)
    join.agree(given.config, run_dir, cluster.timeout)
    return given, run_dir, target


def say(text: str) -> None:
    """Prints a line as it is, without markup, colours or line breaks of its own."""
    make_console(highlight=False, soft_wrap=True).print(text, markup=False)


def run_dir_of(target: Path) -> Path:
    """The run's folder that a target names: a folder itself, the folder of a config.json, or
    runs/NAME for a config file.
    """
    if target.is_dir():
        return target
    return target.parent if target.name == "config.json" else Path("runs") / target.stem


def check_no_run(run_dir: Path) -> None:
    """Raises ValueError for the folder of a run, where files of a sweep would hide the run's
    page."""
    if (run_dir / "config.json").is_file():
        raise ValueError(f"--run_dir {run_dir}: a run is there; give a folder of its own")
