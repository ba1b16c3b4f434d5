"""The verb that cleans a corpus: prepare."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from bigmodel_jax.core import paths
from bigmodel_jax.core.paths import check_local
from bigmodel_jax.core.ranges import Count
from bigmodel_jax.verbs.base import CONFIG, OfConfig, Verb, local, one_target, parse_config


@dataclasses.dataclass(frozen=True)
class Prepare(OfConfig):
    workers: Count = 1  # processes that clean; the bytes of the result do not depend on it
    output: str = ""  # the folder of the prepared corpus; empty: in the cache, where the config's runs find it


def prepare(args: Sequence[str]) -> None:
    target, options = one_target("prepare", args)
    given, _ = parse_config(Prepare(), target, options, "prepare")
    check_local("prepare: --output", given.output)
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
        folder = local("prepare: --output", given.output) if given.output else corpus.folder(root)
        _prepared(corpus.job(root), folder, root, given.workers, data.max_bad_records)
        _show(folder)


def _prepared(job, folder: Path, root: Path, workers: int, limit: int) -> None:
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

        make(job, folder, root, workers=workers, max_bad_records=limit, say=say)


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
        found = what if isinstance(what, list) else []
        number, size = number + len(found), size + sum(paths.stat(path).size for path in found)
        wrong += [f"{name}: {change}" for change in remembered.changed(found, data.root())]
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
        "prepare CONFIG [--workers N] [--output FOLDER]",
        "clean a corpus into shards, with a data card",
        f"CONFIG        {CONFIG}\n"
        "--workers     processes that clean; the bytes of the result do not depend on it\n"
        "--output      the result's folder; without it: in the cache, where train finds it\n"
        "--FIELD       any field of the config by its dotted name\n\n"
        "Runs the steps of the config's Corpus. Killed, the same command goes on. The folder\n"
        "gets shards of records, manifest.json and data_card.json.",
        ("prepare corpus.py --workers 4",),
    )
}
