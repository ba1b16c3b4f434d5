"""What one process does in the order of the records, in parts that an engine of groups can do: the bytes are the same.

Questions to `Shared` steps are judged step after step, each group of keys by itself in the order of the records. What then
becomes of a chunk is known from its own verdicts. One plan over sizes, counts and bad records says which shard a line is in.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.cleaning.step import Shared
from bigmodel_jax.data.corpus.card import Tally
from bigmodel_jax.data.corpus.outcome import Asked, Bad, Gave, Kept

Position = tuple[int, int]  # of a chunk: the number of its part of the source, its number in the part
Question = tuple[
    int, int, int, bytes
]  # its number in the chunk, that of the question it hangs on or -1, the step, the key
Shard = tuple[int, str, int]  # the how manieth to be closed, its split, its number in the split


def numbered(chunk: list[list]) -> Iterator[tuple[int, int, int, NamedTuple]]:
    """(record, question, question on which it hangs, event) of all events of a chunk; -1 where there is no question."""
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
    """All of a chunk, those that hang on others included."""
    return [(number, above, event.step, event.key) for _, number, above, event in numbered(chunk) if number >= 0]


def judged(step: Shared, asked: Iterable[tuple[Position, int, bytes]]) -> Iterator[tuple[Position, tuple[int, str]]]:
    """(chunk, (question, why)) of what the step drops in one group of keys, which is sorted in memory."""
    index = step.index()
    for position, number, key in sorted(asked):
        if why := index.ask(key):
            yield position, (number, why)


def still_open(asked: list[Question], dropped: set[int], step: int) -> list[Question]:
    """The questions of later steps, without those that hang on a record which is dropped."""
    dropped, left = set(dropped), []
    for number, above, of, key in asked:
        if above in dropped:
            dropped.add(number)
        elif of > step:
            left.append((number, above, of, key))
    return left


class Settled(NamedTuple):
    """What a chunk became. lines: (split, line) of each record; tally: a `Tally`'s state; bad: (where, why) of bad records."""

    lines: list[list[tuple[str, bytes]]]
    tally: dict[str, Any]
    bad: list[tuple[str, str]]


def settled(chunk: list[list], verdicts: dict[int, str], num_steps: int) -> Settled:
    """What becomes of a chunk; verdicts: why a question's record is dropped, where it is."""
    tally, lines, bad, gone = Tally(num_steps), [[] for _ in chunk], [], set()
    for record, number, above, event in numbered(chunk):
        if above in gone:
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
    """Where a chunk begins: shards closed so far, (split, number of its shards) pairs, splits of open shards, their bytes."""

    closed: int = 0
    numbers: tuple[tuple[str, int], ...] = ()
    open: tuple[str, ...] = ()
    bytes: int = 0


class Cutter:
    """Closes shards where one process closes them: behind the record with which they are full, and behind a split."""

    def __init__(self, place: Place, shard_bytes: int):
        self.shard_bytes, self.closed, self.bytes = shard_bytes, place.closed, place.bytes
        self.numbers, self.open = dict(place.numbers), set(place.open)

    def place(self) -> Place:
        return Place(self.closed, tuple(sorted(self.numbers.items())), tuple(sorted(self.open)), self.bytes)

    def record(self, sizes: Iterable[tuple[str, int]]) -> list[Shard]:
        """The shard of each of a record's lines; sizes: (split, bytes)."""
        found = []
        for split, size in sizes:
            self.open.add(split)
            self.bytes += size
            found.append((self.closed, split, self.numbers.get(split, 0)))
        if self.bytes >= self.shard_bytes:
            self.close()
        return found

    def close(self) -> None:
        for split in self.open:
            self.numbers[split] = self.numbers.get(split, 0) + 1
        self.open, self.bytes, self.closed = set(), 0, self.closed + 1


def by_shard(
    place: Place, shard_bytes: int, lines: list[list[tuple[str, bytes]]]
) -> Iterator[tuple[Shard, list[bytes]]]:
    """The lines of a chunk that begins at `place`, by their shards."""
    cutter, found = Cutter(place, shard_bytes), {}
    for record in lines:
        shards = cutter.record([(split, len(line)) for split, line in record])
        for shard, (_, line) in zip(shards, record, strict=True):
            found.setdefault(shard, []).append(line)
    yield from found.items()


# ---------------------------------------------------------------- the plan


class Chunk(NamedTuple):
    """What the plan needs of a chunk; sizes: (split, bytes) of each record's lines."""

    position: Position
    split: str
    sizes: list[list[tuple[str, int]]]
    tally: dict[str, Any]
    bad: list[tuple[str, str]]


class Part(NamedTuple):
    """What the plan needs of a part of the source that was read; wrong: why it could not be read, or ""."""

    number: int
    split: str
    bad: list[tuple[str, str]]
    wrong: str


class Plan(NamedTuple):
    """manifest: what was read and skipped of each split; wrong: what ends the work, or ""; places: of chunks."""

    manifest: dict[str, Any]
    tally: dict[str, Any]
    wrong: str
    places: dict[Position, Place]


def planned(
    inputs: tuple[str, ...], num_steps: int, shard_bytes: int, limit: int, parts: list[Part], chunks: list[Chunk]
) -> Plan:
    """inputs: the splits in the order of reading; limit: bad records of a split that are allowed."""
    parts, chunks = sorted(parts), sorted(chunks, key=lambda chunk: chunk.position)
    tally, cutter, places, split = Tally(num_steps), Cutter(Place(), shard_bytes), {}, ""
    read, skipped = dict.fromkeys(inputs, 0), {split: [] for split in inputs}
    for entry in (*parts, *chunks):
        skipped[entry.split] += entry.bad
    for chunk in chunks:
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
    """What a `BadRecords` of this limit says; "" where it allows all."""
    try:
        for entries in skipped.values():
            bad = BadRecords(limit)
            for entry in entries:
                bad.skip(*entry)
    except ValueError as error:
        return str(error)
    return ""
