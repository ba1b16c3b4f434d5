"""Prepares a corpus with Apache Beam: workers run the steps on chunks, and compare keys in groups.

Beam's pinned dependencies conflict with this project's lock file, so this file is imported in an
environment of its own. The workers need the package, the source's files and the output folder under
the same paths. A worker needs memory for one group at a time. The group of `NearDuplicates` holds
all texts that reach the step (about 1 kB each). Any other group holds one shard (`shard_mb`) or the
sizes of all lines.

After an interruption, the next pipeline is the whole graph again. Its workers take what is finished
(finished.py) from the output folder: cleaned chunks, verdicts of large groups, shards.
"""

import functools
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import TaggedOutput

from bigmodel_jax.core import files
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.cleaning.step import Shared
from bigmodel_jax.data.corpus import finished, grouped
from bigmodel_jax.data.corpus import folder as folders
from bigmodel_jax.data.corpus.card import Tally
from bigmodel_jax.data.corpus.outcome import outcomes
from bigmodel_jax.data.corpus.parts import parts
from bigmodel_jax.data.corpus.prepare import Engine, Job, chunks, finish
from bigmodel_jax.data.corpus.workers import Packed, packed, unpacked
from bigmodel_jax.data.sources.sources import Source

# Beam reads these types at run time.
OfChunk, OfShard, OfAll = (
    tuple[tuple[int, int], Any],
    tuple[tuple[int, str, int], Any],
    tuple[str, Any],
)
# The ending .open makes the next start delete a result that a killed pipeline left.
RESULT = "result.json.open"  # the file in which the pipeline reports to the process that started it
LARGE = 1000  # questions of a group whose verdicts are stored; smaller groups are judged faster than read


class Work(NamedTuple):
    """What every worker knows. `parts` lists (split, source) in reading order."""

    job: Job
    folder: Path
    root: Path
    limit: int
    parts: list[tuple[str, Source]]


def engine(options: Sequence[str]) -> Engine:
    """Return an engine that runs the pipeline with Beam options such as --runner=FlinkRunner."""
    return functools.partial(_run, tuple(options))


def _run(options: tuple[str, ...], job: Job, folder: Path, root: Path, limit: int) -> None:
    found = [(split, part) for split in job.inputs for part in parts(job.source, split, root)]
    work = packed(Work(job, folder.absolute(), root.absolute(), limit, found))
    for left in folder.glob("*.open"):  # a killed pipeline left these files
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    try:
        with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            _pipeline(pipeline, work, job, len(found))
    except Exception as error:  # runners raise many types, and argparse raises for wrong options
        said = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ValueError(f"--engine beam: the pipeline failed: {said[-1][:300]}") from error
    if not (folder / RESULT).exists():
        raise ValueError(
            f"--engine beam: the workers left nothing in {folder}; they must share that folder, by its path"
        )
    result = json.loads((folder / RESULT).read_bytes())
    (folder / RESULT).unlink()
    if result["wrong"]:
        raise ValueError(result["wrong"])
    finish(job, folder, result["manifest"], Tally(len(job.steps), result["tally"]))


def _pipeline(pipeline: beam.Pipeline, work: Packed, job: Job, num_parts: int) -> None:
    """Build the pipeline.

    Values between two stages are tuples of a key and pickled bytes, except values that Beam sorts
    or groups by.
    """
    # Beam fuses neighbouring stages into one task. A Reshuffle ends the task, so that the parts
    # (and below, the chunks) spread over all workers.
    numbers = pipeline | "parts" >> beam.Create(range(num_parts)) | "spread parts" >> beam.Reshuffle()
    read = numbers | "read" >> beam.FlatMap(_read, work).with_outputs("part", main="chunk")
    cleaned = read.chunk | "spread chunks" >> beam.Reshuffle() | "clean" >> beam.Map(_clean, work)
    dropped = _judged(cleaned, work, [i for i, step in enumerate(job.steps) if isinstance(step, Shared)])
    settled = {"chunk": cleaned, "dropped": dropped} | "join verdicts" >> beam.CoGroupByKey()
    settled |= "settle" >> beam.FlatMap(_settle, work).with_outputs("facts", main="lines")
    plan = (read.part, settled.facts) | "facts" >> beam.Flatten() | "all facts" >> beam.GroupByKey()
    plan |= "plan" >> beam.FlatMap(_plan, work).with_outputs("result", main="place")
    lines = {"lines": settled.lines, "place": plan.place} | "join places" >> beam.CoGroupByKey()
    lines |= "by shard" >> beam.FlatMap(_by_shard, work)
    shards = lines | "each shard" >> beam.GroupByKey() | "write" >> beam.Map(_write, work)
    result = (plan.result, shards) | "results" >> beam.Flatten() | "all results" >> beam.GroupByKey()
    _ = result | "tell" >> beam.Map(_tell, work)


def _judged(cleaned: beam.PCollection, work: Packed, shared: list[int]) -> beam.PCollection:
    """Return (chunk, (question, why)) for every record that a `Shared` step drops, step by step."""
    left, found = cleaned | "questions" >> beam.Map(_questions), []
    for i in shared:
        asked = left | f"ask {i}" >> beam.FlatMap(_asked, i, work) | f"group {i}" >> beam.GroupByKey()
        found.append(asked | f"judge {i}" >> beam.FlatMap(_judge, i, work))
        # No question is open after the last of these steps, so the join is left out.
        if i != shared[-1]:
            left = {"left": left, "dropped": found[-1]} | f"join {i}" >> beam.CoGroupByKey()
            left |= f"still open {i}" >> beam.Map(_still_open, i)
    return found | "verdicts" >> beam.Flatten(pipeline=cleaned.pipeline)


# ---------------------------------------------------------------- what runs on workers


@functools.lru_cache(maxsize=1)
def _work(work: Packed) -> Work:
    """Return the unpickled work; each process unpickles it once."""
    return unpacked(work)


def _read(number: int, work: Packed) -> Iterator[OfChunk]:
    """Yield the chunks of one part of the source, and the facts of the part.

    A chunk has no records where an earlier pipeline has cleaned the whole part.
    """
    given = _work(work)
    (split, source), name, wrong = given.parts[number], f"parts/{number}", ""
    done = finished.read(given.folder, name)
    # Other workers clean and store the chunks, so a part that was read may lack some of them.
    if done and all(finished.path(given.folder, f"chunks/{number}/{i}").exists() for i in range(done["chunks"])):
        yield from (((number, i), pickle.dumps((split, None))) for i in range(done["chunks"]))
    else:
        bad, done = BadRecords(given.limit), {"chunks": 0}
        try:
            for i, chunk in enumerate(chunks(source.records(split, given.root, bad))):
                done["chunks"] = i + 1
                yield (number, i), pickle.dumps((split, chunk))
        except ValueError as error:  # a user's mistake ends the work; the plan reports it
            wrong = str(error)
        done["bad"] = bad.skipped
        if not wrong:
            finished.write(given.folder, name, done)
    bad = [tuple(entry) for entry in done["bad"]]
    yield TaggedOutput("part", ("", pickle.dumps(grouped.Part(number, split, bad, wrong))))


def _clean(item: OfChunk, work: Packed) -> OfChunk:
    """Run the steps on a chunk, or take the events that an earlier pipeline stored."""
    given, position, (split, records) = _work(work), item[0], pickle.loads(item[1])
    name = "chunks/{}/{}".format(*position)

    def run() -> list:
        if records is None:
            file = finished.path(given.folder, name)
            raise ValueError(f"{file} is damaged; delete it, and the same command continues")
        return finished.to_json(outcomes(given.job.steps, given.job.splits, (split, records)))

    return position, pickle.dumps((split, finished.from_json(finished.once(given.folder, name, run))))


def _questions(item: OfChunk) -> OfChunk:
    """Return the questions of a chunk to all `Shared` steps."""
    return item[0], grouped.questions(pickle.loads(item[1])[1])


def _asked(item: OfChunk, step: int, work: Packed) -> Iterator[tuple[bytes, Any]]:
    """Yield (group, question) for the questions of a chunk to one step."""
    position, left = item
    shared = _work(work).job.steps[step]
    for number, _, of, key in left:
        if of == step:
            yield shared.group(key), (position, number, key)


def _judge(item: tuple[bytes, Any], step: int, work: Packed) -> list[OfChunk]:
    """Judge one group of keys. The verdicts of a large group are stored."""
    given, (group, asked) = _work(work), (item[0], list(item[1]))

    def judge() -> list[OfChunk]:
        return list(grouped.judged(given.job.steps[step], asked))

    if len(asked) < LARGE:
        return judge()
    name = f"verdicts/{step}/{hashlib.sha256(group).hexdigest()}"
    return [(tuple(at), tuple(verdict)) for at, verdict in finished.once(given.folder, name, judge)]


def _still_open(item: OfChunk, step: int) -> OfChunk:
    """Return the questions of a chunk that later steps must still answer."""
    position, found = item
    (left,) = found["left"]
    return position, grouped.still_open(left, {number for number, _ in found["dropped"]}, step)


def _settle(item: OfChunk, work: Packed) -> Iterator[OfChunk]:
    """Yield the lines of a chunk after all verdicts, and the facts that the plan needs."""
    position, found = item
    split, events = pickle.loads(next(iter(found["chunk"])))
    result = grouped.settled(events, dict(found["dropped"]), len(_work(work).job.steps))
    sizes = [[(to, len(line)) for to, line in record] for record in result.lines]
    yield position, pickle.dumps(result.lines)
    yield TaggedOutput("facts", ("", pickle.dumps(grouped.Chunk(position, split, sizes, result.tally, result.bad))))


def _plan(item: OfAll, work: Packed) -> Iterator[OfChunk]:
    """Compute where each chunk's lines go, from the facts of all parts and chunks."""
    given, facts = _work(work), [pickle.loads(fact) for fact in item[1]]
    parts, of_chunks = ([fact for fact in facts if isinstance(fact, kind)] for kind in (grouped.Part, grouped.Chunk))
    job = given.job
    plan = grouped.planned(job.inputs, len(job.steps), job.shard_bytes, given.limit, parts, of_chunks)
    yield TaggedOutput("result", ("", {"manifest": plan.manifest, "tally": plan.tally, "wrong": plan.wrong}))
    yield from ((position, tuple(place)) for position, place in plan.places.items())


def _by_shard(item: OfChunk, work: Packed) -> Iterator[OfShard]:
    """Yield a chunk's lines by shard."""
    position, found = item
    for place in found["place"]:  # empty where the plan found a mistake
        lines = pickle.loads(next(iter(found["lines"])))
        for shard, own in grouped.by_shard(grouped.Place(*place), _work(work).job.shard_bytes, lines):
            yield shard, (position, own)


def _write(item: OfShard, work: Packed) -> OfAll:
    """Write one shard, which appears whole or not at all, unless an earlier pipeline wrote it.

    Several workers may write the same shard. All write the same bytes.
    """
    (closed, split, _), chunks_of = item
    folder, name = _work(work).folder, f"shards/{closed}-{split}"
    facts = finished.read(folder, name)
    if not facts or not (folder / facts["name"]).exists():
        facts = _written(folder, item[0], chunks_of)
        finished.write(folder, name, facts)
    return "", {"closed": closed, "shard": facts}


def _written(folder: Path, shard: grouped.Shard, chunks_of: Iterable[tuple]) -> dict[str, Any]:
    """Write the lines of one shard, and return its entry of the manifest."""
    closed, split, number = shard
    # A name of its own keeps apart two workers that write the same shard.
    apart = folder / f"{closed}-{os.getpid()}-{os.urandom(4).hex()}.open"
    apart.mkdir()
    shards = folders.Shards(apart, {split: number})
    # Beam groups in any order, so the lines of a shard are sorted into the order of the source.
    for _, lines in sorted(chunks_of):
        for line in lines:
            shards.write(split, line)
    (facts,) = shards.close()
    os.replace(apart / facts["name"], folder / facts["name"])
    apart.rmdir()
    return facts


def _tell(item: OfAll, work: Packed) -> None:
    """Write the result file for the process that started the pipeline."""
    (result,) = [entry for entry in item[1] if "wrong" in entry]
    # Shards arrive in any order. The manifest lists them as one process would close them.
    written = sorted(
        (entry for entry in item[1] if "shard" in entry), key=lambda entry: (entry["closed"], entry["shard"]["split"])
    )
    result["manifest"]["shards"] = [entry["shard"] for entry in written]
    files.replace(_work(work).folder / RESULT, json.dumps(result))
