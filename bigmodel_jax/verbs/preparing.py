"""The verbs for data: prepare cleans and tokenizes a corpus, data shows what a config feeds."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import tyro
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from bigmodel_jax.cluster import peers
from bigmodel_jax.core import paths
from bigmodel_jax.core.ranges import Count
from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.verbs.base import CONFIG, OfConfig, OfJob, Verb, local, one_target, parse_config, parse_job


@dataclasses.dataclass(frozen=True)
class Prepare(OfJob):
    """Options of `prepare`, beside the fields of the config."""

    workers: Count = 1  # processes per host that clean and tokenize; the result does not depend on it
    engine: Literal["processes", "beam"] = "processes"  # what cleans; the result does not depend on it
    beam: str = ""  # Apache Beam's options, such as --runner=FlinkRunner; empty: its local runner
    output: str = ""  # prepared corpus's folder, also in a bucket (gs://); empty: in the cache, where train finds it


def prepare(args: Sequence[str]) -> None:
    """Runs the verb `prepare`: cleans and tokenizes the config's corpora, with a data card for
    each.
    """
    given, _, target = parse_job(Prepare(), "prepare", args)
    paths.check("prepare: --output", given.output, ("gs",))
    engine = _engine(given, args)
    from bigmodel_jax.core import mirror, processes
    from bigmodel_jax.data.corpus import bucket
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
    address = given.output.rstrip("/") if paths.is_remote(given.output) else ""
    folders = [
        mirror.folder(address or str(local("prepare: --output", given.output)))
        if given.output
        else corpus.folder(data.root())
        for corpus, data in found
    ]

    whole: list[Path] = []  # folders that the bucket already held complete

    def clean() -> None:
        for folder, (corpus, data) in zip(folders, found, strict=True):
            job = corpus.job(data.root())
            if address and bucket.fetched(address, job.key, folder):
                whole.append(folder)
            else:
                _prepared(job, folder, data.root(), given.workers, data.max_bad_records, engine)

    processes.in_turn("corpora", clean)
    if not given.output:  # tokens belong to the corpus in the cache
        _tokenize(given.config.data, given.workers)
    if not peers.speaks():
        return
    for folder, (corpus, data) in zip(folders, found, strict=True):
        if folder not in whole:
            _complete(folder, corpus, data)
        if address and folder not in whole:
            with make_console(stderr=True).status(f"Uploading to {address} ..."):
                bucket.upload(folder, address)
        _show(folder)
    print(*map(mirror.address, folders), sep="\n")


@contextlib.contextmanager
def _bar(begins: str) -> Iterator[Callable[[str, int, int | None], None]]:
    """Yields a function that shows (what is done, how many are done, how many there are)."""
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Bar(*columns, console=make_console(stderr=True), transient=True, disable=not peers.speaks()) as bar:
        task = bar.add_task(begins, total=None)
        yield lambda said, done, of: bar.update(task, description=said, completed=done, total=of)


# Beam's pins conflict with those of uv.lock, so it needs an environment of its own. The bytes of
# shards depend on the packages in OF_BYTES, so both environments must have the same versions of
# these packages.
BEAM, OF_BYTES = "apache-beam==2.77.0", ("array-record", "ftfy", "py3langid", "rensa", "pyarrow")


def _engine(given: Prepare, args: Sequence[str]):
    """Returns the Apache Beam engine, or None if processes of this machine do the work.

    Raises a ValueError of one line where Beam is not installed. The message has the command that
    installs it.
    """
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
    """The command that makes an environment with Beam and runs `prepare` there."""
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
    """Prepares one corpus under a progress bar, with the rate and, if the files are known, the time
    left.
    """
    from bigmodel_jax.data.corpus.prepare import prepare as make

    began = time.monotonic()
    with _bar("reading") as show:

        def say(now) -> None:
            seconds = max(time.monotonic() - began, 1e-3)
            rate = f"{now.records / seconds:,.0f} records/s, {now.bytes / seconds / 1e6:,.1f} MB/s"
            said = f"{now.records:,} records read, {now.kept:,} kept, {rate}"
            show(said, min(now.bytes, now.total), now.total or None)

        make(job, folder, root, workers=workers, max_bad_records=limit, say=say, engine=engine)


def _tokenize(data, workers: int) -> None:
    """Tokenizes the texts, and says how many tokens each split has."""
    from bigmodel_jax.core import processes
    from bigmodel_jax.data.base import inner
    from bigmodel_jax.data.text import text, token_shards

    for part in inner(data):
        processes.in_turn("tokenizers", part.check_tokenizers)
    console = make_console(width=100, highlight=False, quiet=not peers.speaks())
    for part, split in text.splits(data):
        with _bar("tokenizing") as show:
            folder = text.encoded_together(
                part, split, workers, lambda done, of: show(f"{done} of {of} shards tokenized", done, of)
            )
        found = token_shards.read_manifest(folder)
        said = f"{found['tokens']:,} tokens of {found['documents']:,} documents"
        console.print(f"{split}: {said} in shards: {len(found['shards'])}")


def _complete(folder: Path, corpus, data) -> None:
    """Adds the statistics of the config's tokenizer to the data card, and writes the card as a
    page.
    """
    from bigmodel_jax.data.corpus.token_statistics import add_to_card
    from bigmodel_jax.report.card_page import build_card_page

    add_to_card(folder, corpus, data)
    build_card_page(folder)


def _show(folder: Path) -> None:
    """Prints the data card as a table: records in and out of each step, and common reasons."""
    from bigmodel_jax.data.corpus.prepare import CARD

    card = json.loads((folder / CARD).read_text("utf-8"))
    table = Table("step", "in", "out", "dropped", box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for step in card["steps"]:
        reasons = sorted(step["dropped"].items(), key=lambda item: -item[1])[:4]
        said = ", ".join(f"{rule} {count:,}" for rule, count in reasons)
        table.add_row(step["step"], f"{step['in']:,}", f"{step['out']:,}", said)
    console = make_console(width=100, highlight=False)
    console.print(table)
    for split, counts in card["splits"].items():
        console.print(f"{split}: {counts['records']:,} records, {counts['characters']:,} characters")


def verify(data) -> None:
    """Reads all files of a data config again, prepared shards too.

    Prints each file that has changed, and raises a ValueError of one line if there is one.
    """
    from bigmodel_jax.data.corpus.corpus import corpora
    from bigmodel_jax.data.corpus.folder import changed
    from bigmodel_jax.data.sources import remembered
    from bigmodel_jax.data.text import text, token_shards

    wrong, number, size, known = [], 0, 0, 0
    for name, what in data.reads().items():
        found = what if isinstance(what, list) else []
        number, size = number + len(found), size + sum(paths.stat(path).size for path in found)
        changes, remembers = remembered.changed(found, data.root())
        wrong, known = wrong + [f"{name}: {change}" for change in changes], known + remembers
    for corpus, part in corpora(data):
        folder = corpus.folder(part.root())
        wrong += changed(folder) if folder.exists() else []
    for part, split in text.splits(data):
        damaged = token_shards.changed(text.tokens_folder(part, split))
        wrong += [f"{path} has other content than its manifest says" for _, path in damaged]
    for change in wrong:
        print(change)
    if wrong:
        raise ValueError(f"--verify: {len(wrong)} of the files that were read have changed: {wrong[0]}")
    # Little data is read at each start, so only this verb remembers its digests.
    new = f" ({number - known:,} not remembered before)" if known < number else ""
    print(f"{number:,} files, {size:,} bytes: as remembered{new}")


@dataclasses.dataclass(frozen=True)
class Data(OfConfig):
    """Options of `data`, beside the fields of the config."""

    train_tokenizer: str = ""  # write the tokenizer to this tokenizer.json, and do nothing else
    verify: tyro.conf.FlagConversionOff[bool] = False  # read all files again and print which have changed


def data(args: Sequence[str]) -> None:
    """Runs the verb `data`: prints what a config feeds, writes its tokenizer, or checks files."""
    target, options = one_target("data", args)
    at = options.index("--verify") + 1 if "--verify" in options else 0
    if at and (options[at:] or ["--"])[0].startswith("--"):  # --verify alone means True
        options.insert(at, "True")
    given, _ = parse_config(Data(), target, options, "data")
    config, path = given.config, given.train_tokenizer
    paths.check_local("data: --train-tokenizer", path)
    if given.verify:
        return verify(config.data)
    if path:
        tokenizer = config.data.open_tokenizer()
        if tokenizer is None:
            raise ValueError(f"--train-tokenizer {path}: {type(config.data).__name__} is not text")
        try:
            tokenizer.save(path)
        except Exception as error:  # the binding raises plain Exception
            raise ValueError(f"--train-tokenizer {path}: it cannot be written ({error})") from None
        print(f"{path}: {tokenizer.vocab_size:,} tokens")
        return
    from bigmodel_jax.data.inspect import show

    show(config.data)


VERBS = {
    "prepare": Verb(
        prepare,
        "prepare CONFIG [--workers N] [--output FOLDER]",
        "clean and tokenize a corpus, with a data card",
        f"CONFIG        {CONFIG}\n"
        "--workers     processes per host; the result does not depend on their number\n"
        "--engine      processes, or beam: Apache Beam, in an environment of its own\n"
        "--beam        its options, such as --beam='--runner=FlinkRunner --parallelism=8'\n"
        "--output      the result's folder; without it: in the cache, where train finds it\n"
        "--cluster.X   runs on several hosts, which tokenize in parallel; as for train\n"
        "--FIELD       any field of the config by its dotted name\n\n"
        "Runs the steps of the config's Corpus. After a kill, the same command continues.\n"
        "The folder gets shards of records, manifest.json, data_card.json, data_card.html.\n"
        "If the rows are text, the cache gets a shard of tokens for each shard of records.",
        ("prepare corpus.py --workers 4",),
    ),
    "data": Verb(
        data,
        "data CONFIG [--train-tokenizer PATH] [--FIELD VALUE ...]",
        "show what a config feeds: counts, samples, tokens",
        f"CONFIG             {CONFIG}\n--FIELD            any field of the config by its dotted name\n"
        "--train-tokenizer  only writes the config's tokenizer, trained on the training\n"
        "                   split, to this tokenizer.json\n"
        "--verify           reads all files again and prints which have changed\n\n"
        "Prints counts per split, sample records before and after each transform, token\n"
        "statistics and the share of padding.",
        ("data configs/lm_tiny.py", "data configs/lm_tiny.py --data.packing first_fit --data.seq_len 512"),
    ),
}
