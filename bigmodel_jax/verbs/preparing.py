"""The verb that cleans a corpus: prepare."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from bigmodel_jax.core.local_paths import check_local
from bigmodel_jax.core.ranges import Count
from bigmodel_jax.verbs.base import CONFIG, OfConfig, Verb, local, one_target, parse_config


@dataclasses.dataclass(frozen=True)
class Prepare(OfConfig):
    workers: Count = 1  # processes that clean; the bytes of the result do not depend on it
    engine: Literal["processes", "beam"] = "processes"  # who does the work; the bytes do not depend on it either
    beam: str = ""  # options of Beam's, such as --runner=FlinkRunner; empty: its runner on this machine
    output: str = ""  # the folder of the prepared corpus; empty: in the cache, where the config's runs find it


def prepare(args: Sequence[str]) -> None:
    target, options = one_target("prepare", args)
    given, _ = parse_config(Prepare(), target, options, "prepare")
    check_local("--output", given.output)
    engine = _engine(given, args)
    from bigmodel_jax.data.corpus.corpus import corpora

    found = list(corpora(given.config.data))
    if not found:
        source = getattr(given.config.data, "source", None)
        has = (
            f"data.source is {type(source).__name__}" if source else f"{type(given.config.data).__name__} has no source"
        )
        raise ValueError(f"prepare: {target} has nothing to prepare: {has}; docs/data.md shows a Corpus")
    if given.output and len(found) > 1:
        raise ValueError(
            f"--output {given.output}: {target} has {len(found)} corpora; without --output they go to the cache"
        )
    for corpus, data in found:
        root = data.root()
        folder = local("--output", given.output) if given.output else corpus.folder(root)
        _prepared(corpus.job(root), folder, root, given.workers, data.max_bad_records, engine)
        _show(folder)


# Beam's pins conflict with the lock's. The shards' bytes depend on the others, which are those of this environment.
BEAM, OF_BYTES = "apache-beam==2.77.0", ("array-record", "ftfy", "py3langid", "rensa", "pyarrow")


def _engine(given: Prepare, args: Sequence[str]):
    """None for this machine's processes; ValueError, one line, where Beam is not installed, with the command that does it."""
    if given.engine == "processes":
        if given.beam:
            raise ValueError(f"--beam {given.beam!r} needs --engine beam; without it no option of Beam's is read")
        return None
    if importlib.util.find_spec("apache_beam") is None:
        raise ValueError(f"--engine beam needs an environment of its own, with Apache Beam in it: {beam_command(args)}")
    from bigmodel_jax.data.corpus.beam import engine

    mode = "multi_processing" if given.workers > 1 else "in_memory"
    here = ["--runner=DirectRunner", f"--direct_num_workers={given.workers}", f"--direct_running_mode={mode}"]
    return engine([*here, "--default_sdk_harness_log_level=ERROR", *shlex.split(given.beam)])


def beam_command(args: Sequence[str]) -> str:
    """The command that makes an environment with Beam, and runs `prepare` there."""
    repository = Path(__file__).parents[2]
    found = {
        dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in importlib.metadata.distributions()
    }
    pins = [f"{name}=={found[name]}" for name in OF_BYTES if name in found]
    extras = ",".join(["clean"] * ("rensa" in found) + ["parquet"] * ("pyarrow" in found))
    package = f"{repository}[{extras}]" if extras else str(repository)
    command = ["uv", "run", "--no-project", "--python", "3.12", "--with-editable", package]
    for pin in (BEAM, *pins):
        command += ["--with", pin]
    return shlex.join([*command, str(repository / "launch.py"), "prepare", *args])


def _prepared(job, folder: Path, root: Path, workers: int, limit: int, engine) -> None:
    """Prepares one corpus under a bar with its rate and, where its files are known, the time that is left."""
    from bigmodel_jax.data.corpus.prepare import prepare as make

    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def say(now) -> None:
            seconds = max(bar.tasks[0].elapsed or 0.0, 1e-3)
            rate = f"{now.records / seconds:,.0f} records/s, {now.bytes / seconds / 1e6:,.1f} MB/s"
            said = f"{now.records:,} records read, {now.kept:,} kept, {rate}"
            bar.update(task, total=now.total or None, completed=min(now.bytes, now.total), description=said)

        make(job, folder, root, workers=workers, max_bad_records=limit, say=say, engine=engine)


def _show(folder: Path) -> None:
    """The data card as a table: what each step took and gave, and its commonest reasons."""
    from bigmodel_jax.data.corpus.prepare import CARD

    card = json.loads((folder / CARD).read_text("utf-8"))
    table = Table("step", "in", "out", "dropped", box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for step in card["steps"]:
        reasons = sorted(step["dropped"].items(), key=lambda item: -item[1])[:4]
        said = ", ".join(f"{rule} {count:,}" for rule, count in reasons)
        table.add_row(step["step"], f"{step['in']:,}", f"{step['out']:,}", said)
    console = Console(width=100, highlight=False)
    console.print(table)
    for split, counts in card["splits"].items():
        console.print(f"{split}: {counts['records']:,} records, {counts['characters']:,} characters")
    print(folder)


def verify(data) -> None:
    """Reads all files of a data config again, prepared shards too; ValueError, one line, where one has changed."""
    from bigmodel_jax.data.corpus.corpus import corpora
    from bigmodel_jax.data.corpus.folder import changed
    from bigmodel_jax.data.sources import remembered

    wrong, number, size = [], 0, 0
    for name, what in data.reads().items():
        paths = what if isinstance(what, list) else []
        number, size = number + len(paths), size + sum(path.stat().st_size for path in paths)
        wrong += [f"{name}: {change}" for change in remembered.changed(paths, data.root())]
    for corpus, part in corpora(data):
        folder = corpus.folder(part.root())
        wrong += changed(folder) if folder.exists() else []
    for change in wrong:
        print(change)
    if wrong:
        raise ValueError(f"--verify: {len(wrong)} of the files that were read have changed: {wrong[0]}")
    print(f"{number:,} files, {size:,} bytes: as remembered")


VERBS = {
    "prepare": Verb(
        prepare,
        "prepare CONFIG [--workers N] [--engine beam] [--output FOLDER]",
        "clean a corpus into shards, with a data card",
        f"CONFIG        {CONFIG}\n"
        "--workers     processes that clean; the bytes of the result do not depend on it\n"
        "--engine      processes, or beam: Apache Beam, in an environment of its own\n"
        "--beam        its options, such as --beam='--runner=FlinkRunner --parallelism=8'\n"
        "--output      the result's folder; without it: in the cache, where train finds it\n"
        "--FIELD       any field of the config by its dotted name\n\n"
        "Runs the steps of the config's Corpus. Killed, the same command goes on. The folder\n"
        "gets shards of records, manifest.json and data_card.json.",
        ("prepare corpus.py --workers 4",),
    )
}
