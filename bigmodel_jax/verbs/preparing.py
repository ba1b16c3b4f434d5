"""The verb that cleans a corpus and tokenizes it: prepare."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from bigmodel_jax.cluster import peers
from bigmodel_jax.core import paths
from bigmodel_jax.core.paths import check_local
from bigmodel_jax.core.ranges import Count
from bigmodel_jax.verbs.base import CONFIG, OfJob, Verb, local, parse_job


@dataclasses.dataclass(frozen=True)
class Prepare(OfJob):
    workers: Count = 1  # processes of each host that clean and tokenize; the bytes of the result do not depend on it
    output: str = ""  # the folder of the prepared corpus; empty: in the cache, where the config's runs find it


def prepare(args: Sequence[str]) -> None:
    given, _, target = parse_job(Prepare(), "prepare", args)
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
    folders = []
    for corpus, data in found:
        root = data.root()
        folders.append(local("prepare: --output", given.output) if given.output else corpus.folder(root))
        _prepared(corpus.job(root), folders[-1], root, given.workers, data.max_bad_records)
    if not given.output:  # tokens belong to the corpus in the cache
        _tokenize(given.config.data, given.workers)
    if not peers.speaks():
        return
    for folder, (corpus, data) in zip(folders, found, strict=True):
        _complete(folder, corpus, data)
        _show(folder)
    print(*folders, sep="\n")


@contextlib.contextmanager
def _bar(begins: str) -> Iterator[Callable[[str, int, int | None], None]]:
    """Yields a function that shows (what is done, its number, of how many)."""
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True, disable=not peers.speaks()) as bar:
        task = bar.add_task(begins, total=None)
        yield lambda said, done, of: bar.update(task, description=said, completed=done, total=of)


def _prepared(job, folder: Path, root: Path, workers: int, limit: int) -> None:
    """Prepares one corpus under a bar with its rate and, where its files are known, the time that is left."""
    from bigmodel_jax.data.corpus.prepare import prepare as make

    began = time.monotonic()
    with _bar("reading") as show:

        def say(now) -> None:
            seconds = max(time.monotonic() - began, 1e-3)
            rate = f"{now.records / seconds:,.0f} records/s, {now.bytes / seconds / 1e6:,.1f} MB/s"
            said = f"{now.records:,} records read, {now.kept:,} kept, {rate}"
            show(said, min(now.bytes, now.total), now.total or None)

        make(job, folder, root, workers=workers, max_bad_records=limit, say=say)


def _tokenize(data, workers: int) -> None:
    """Tokenizes the texts, and says how many tokens each split has."""
    from bigmodel_jax.data.text import text, token_shards

    console = Console(width=100, highlight=False, quiet=not peers.speaks())
    for part, split in text.splits(data):
        with _bar("tokenizing") as show:
            folder = text.encoded_folder(
                part, split, workers, lambda done, of: show(f"{done} of {of} shards tokenized", done, of)
            )
        found = token_shards.read_manifest(folder)
        said = f"{found['tokens']:,} tokens of {found['documents']:,} documents"
        console.print(f"{split}: {said} in shards: {len(found['shards'])}")


def _complete(folder: Path, corpus, data) -> None:
    """The card with what the config's tokenizer makes of the corpus, and as a page."""
    from bigmodel_jax.data.corpus.token_statistics import add_to_card
    from bigmodel_jax.report.card_page import build_card_page

    add_to_card(folder, corpus, data)
    build_card_page(folder)


def _show(folder: Path) -> None:
    """The data card as a table: what each step took and gave, and its commonest reasons."""
    from bigmodel_jax.data.corpus.prepare import CARD

    card = json.loads((folder / CARD).read_text("utf-8"))
    table = Table("step", "in", "out", "dropped", box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for step in card["steps"]:
        reasons = sorted(step["dropped"].items(), key=lambda item: -item[1])[:4]
        said = ", ".join(f"{rule} {count:,}" for rule, count in reasons)
        table.add_row(step["step"], f"{step['in']:,}", f"{step['out']:,}", said)
    console = Console(width=100, highlight=False, quiet=not peers.speaks())
    console.print(table)
    for split, counts in card["splits"].items():
        console.print(f"{split}: {counts['records']:,} records, {counts['characters']:,} characters")


def verify(data) -> None:
    """Reads all files of a data config again, prepared shards too; ValueError, one line, where one has changed."""
    from bigmodel_jax.data.corpus.corpus import corpora
    from bigmodel_jax.data.corpus.folder import changed
    from bigmodel_jax.data.sources import remembered
    from bigmodel_jax.data.text import text, token_shards

    wrong, number, size = [], 0, 0
    for name, what in data.reads().items():
        found = what if isinstance(what, list) else []
        number, size = number + len(found), size + sum(paths.stat(path).size for path in found)
        wrong += [f"{name}: {change}" for change in remembered.changed(found, data.root())]
    for corpus, part in corpora(data):
        folder = corpus.folder(part.root())
        wrong += changed(folder) if folder.exists() else []
    for part, split in text.splits(data):
        wrong += token_shards.changed(text.tokens_folder(part, split))
    for change in wrong:
        print(change)
    if wrong:
        raise ValueError(f"--verify: {len(wrong)} of the files that were read have changed: {wrong[0]}")
    print(f"{number:,} files, {size:,} bytes: as remembered")


VERBS = {
    "prepare": Verb(
        prepare,
        "prepare CONFIG [--workers N] [--output FOLDER]",
        "clean a corpus into shards, with a data card, and tokenize it",
        f"CONFIG        {CONFIG}\n"
        "--workers     processes of each host; the bytes of the result do not depend on it\n"
        "--output      the result's folder; without it: in the cache, where train finds it\n"
        "--cluster.X   one process of several, as of train: hosts clean in turn and tokenize at once\n"
        "--FIELD       any field of the config by its dotted name\n\n"
        "Runs the steps of the config's Corpus. Killed, the same command goes on. The folder\n"
        "gets shards of records, manifest.json, data_card.json and data_card.html. The cache gets\n"
        "a shard of tokens for each where the rows are text.",
        ("prepare corpus.py --workers 4",),
    )
}
