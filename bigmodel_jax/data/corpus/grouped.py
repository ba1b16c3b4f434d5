"""The preparation of a corpus as independent parts, for an engine that groups records by key.

The result has the same bytes as the preparation by one process, which works in record order. The
questions to `Shared` steps are judged step after step. Within a step each group of keys is judged
on its own, in the order of the records. The verdicts on a chunk then decide its lines. One plan
over sizes, counts and bad records decides the shard of each line.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.cleaning.step import Shared
from bigmodel_jax.data.corpus.card import Tally
from bigmodel_jax.data.corpus.outcome import Asked, Bad, Gave, Kept

Position = tuple[int, int]  # of a chunk: number of its part of the source, number within the part
# number in the chunk, number of the question that it depends on (or -1), step, key
Question = tuple[int, int, int, bytes]
Shard = tuple[int, str, int]  # rank in the order of closing, split, number within the split


def numbered(chunk: list[list]) -> Iterator[tuple[int, int, int, NamedTuple]]:
    """Yield (record, question, question it depends on, event) for all events of a chunk.

    The number of a question is -1 where there is none.
    """
    count = itertools.count()

    def visit(record: int, events: list, above: int) -> Iterator[tuple[int, int, int, NamedTuple]]:
        for event in events:
            number = next(count) if isinstance(event, Asked) else -1
            yield record, number, above, event
            if number >= 0:
                yield from visit(record, event.later, number)

    for record, events in enumerate(chunk):
        yield from visit(record, events, -1)


def questions(chunk: list[list]) -> list[Question]:
    """Return all questions of a chunk, including those that depend on others."""
    return [(number, above, event.step, event.key) for _, number, above, event in numbered(chunk) if number >= 0]


def judged(step: Shared, asked: Iterable[tuple[Position, int, bytes]]) -> Iterator[tuple[Position, tuple[int, str]]]:
    """Yield (chunk, (question, why)) for what the step drops in one group of keys.

    The group is sorted in memory.
    """
    index = step.index()
    # An engine groups in any order, and a verdict depends on the records before it.
    for position, number, key in sorted(asked):
        if why := index.ask(key):
            yield position, (number, why)


def still_open(asked: list[Question], dropped: set[int], step: int) -> list[Question]:
    """Return the questions to later steps, without those that depend on a dropped record."""
    dropped, left = set(dropped), []
    for number, above, of, key in asked:
        if above in dropped:
            dropped.add(number)
        elif of > step:
            left.append((number, above, of, key))
    return left


class Settled(NamedTuple):
    """The result of a chunk.

    - lines: (split, line) pairs of each record.
    - tally: the state of a `Tally`.
    - bad: (where, why) of bad records.
    """

    lines: list[list[tuple[str, bytes]]]
    tally: dict[str, Any]
    bad: list[tuple[str, str]]


def settled(chunk: list[list], verdicts: dict[int, str], num_steps: int) -> Settled:
    """Return the result of a chunk. `verdicts` says for each dropped question why it is dropped."""
    tally, lines, bad, gone = Tally(num_steps), [[] for _ in chunk], [], set()
    for record, number, above, event in numbered(chunk):
        if above in gone:
            # Records made from a dropped record are dropped, too. The set must not hold -1, which
            # is the `above` of every event that depends on no question.
            gone |= {number} - {-1}
            continue
        match event:
            case Kept():
                tally.kept(event)
                lines[record].append((event.split, event.line))
            case Gave(step, gave, why, shown):
                tally.step(step, gave, why, shown)
            case Asked(step, _, shown, _):
                why = verdicts.get(number, "")
                tally.step(step, 0 if why else 1, why, shown)
                if why:
                    gone.add(number)
            case Bad(where, why):
                bad.append((where, why))
    return Settled(lines, tally.state(), bad)


# ---------------------------------------------------------------- which shard a line is in


class Place(NamedTuple):
    """The state at the beginning of a chunk.

    - closed: shards closed so far.
    - numbers: (split, number of its shards) pairs.
    - open: splits with an open shard.
    - bytes: size of the open shards.
    """

    closed: int = 0
    numbers: tuple[tuple[str, int], ...] = ()
    open: tuple[str, ...] = ()
    bytes: int = 0


class Cutter:
    """Closes shards exactly where a single process would: when they are full, and after a split."""

    def __init__(self, place: Place, shard_bytes: int):
        self.shard_bytes, self.closed, self.bytes = shard_bytes, place.closed, place.bytes
        self.numbers, self.open = dict(place.numbers), set(place.open)

    def place(self) -> Place:
        """Return the current state."""
        return Place(self.closed, tuple(sorted(self.numbers.items())), tuple(sorted(self.open)), self.bytes)

    def record(self, sizes: Iterable[tuple[str, int]]) -> list[Shard]:
        """Return the shard of each line of a record. `sizes` are (split, bytes) pairs."""
        found = []
        for split, size in sizes:
            self.open.add(split)
            self.bytes += size
            found.append((self.closed, split, self.numbers.get(split, 0)))
        # The check runs after a whole record, as in the preparation by one process.
        if self.bytes >= self.shard_bytes:
            self.close()
        return found

    def close(self) -> None:
        """Close the open shards."""
        for split in self.open:
            self.numbers[split] = self.numbers.get(split, 0) + 1
        self.open, self.bytes, self.closed = set(), 0, self.closed + 1


def by_shard(
    place: Place, shard_bytes: int, lines: list[list[tuple[str, bytes]]]
) -> Iterator[tuple[Shard, list[bytes]]]:
    """Yield (shard, lines) for the lines of a chunk that begins at `place`."""
    cutter, found = Cutter(place, shard_bytes), {}
    for record in lines:
        shards = cutter.record([(split, len(line)) for split, line in record])
        for shard, (_, line) in zip(shards, record, strict=True):
            found.setdefault(shard, []).append(line)
    yield from found.items()


# ---------------------------------------------------------------- the plan


class Chunk(NamedTuple):
    """What the plan needs to know of a chunk. `sizes` are (split, bytes) of each record's lines."""

    position: Position
    split: str
    sizes: list[list[tuple[str, int]]]
    tally: dict[str, Any]
    bad: list[tuple[str, str]]


class Part(NamedTuple):
    """What the plan needs to know of a part of the source; `wrong`: why reading failed, or ""."""

    number: int
    split: str
    bad: list[tuple[str, str]]
    wrong: str


class Plan(NamedTuple):
    """The plan of all shards.

    - manifest: how many records of each split were read, and which were skipped.
    - tally: the counts of the data card.
    - wrong: the error that ends the work, or "".
    - places: the state at the beginning of each chunk.
    """

    manifest: dict[str, Any]
    tally: dict[str, Any]
    wrong: str
    places: dict[Position, Place]


def planned(
    inputs: tuple[str, ...], num_steps: int, shard_bytes: int, limit: int, parts: list[Part], chunks: list[Chunk]
) -> Plan:
    """Compute the plan.

    `inputs` are the splits in reading order, and `limit` is the number of bad records that a split
    may have.
    """
    parts, chunks = sorted(parts), sorted(chunks, key=lambda chunk: chunk.position)
    tally, cutter, places, split = Tally(num_steps), Cutter(Place(), shard_bytes), {}, ""
    read, skipped = dict.fromkeys(inputs, 0), {split: [] for split in inputs}
    for entry in (*parts, *chunks):
        skipped[entry.split] += entry.bad
    for chunk in chunks:
        # A shard holds records of one input split only.
        if split and chunk.split != split:
            cutter.close()
        split = chunk.split
        places[chunk.position] = cutter.place()
        for sizes in chunk.sizes:
            cutter.record(sizes)
        read[split] += len(chunk.sizes)
        tally.add(chunk.tally)
    wrong = next((part.wrong for part in parts if part.wrong), "") or _too_many(skipped, limit)
    return Plan({"read": read, "skipped": skipped}, tally.state(), wrong, {} if wrong else places)


def _too_many(skipped: dict[str, list[tuple[str, str]]], limit: int) -> str:
    """Return the error of a `BadRecords` with this limit; "" where it allows all entries."""
    try:
        for entries in skipped.values():
            bad = BadRecords(limit)
            for entry in entries:
                bad.skip(*entry)
    except ValueError as error:
        return str(error)
    return ""
