"""What becomes of a record in a list of steps, found in any process; what depends on other records is left as a question.

A `Shared` step's question is answered later, in one process and in the order of the records. Meanwhile the steps behind it
have already seen the record, as if it stayed.
"""

import dataclasses
import hashlib
import json
from typing import Any, NamedTuple

from bigmodel_jax.core import user_code
from bigmodel_jax.data.base import lacks
from bigmodel_jax.data.cleaning.step import Record, Shared, Step
from bigmodel_jax.data.sources.array_record_files import json_line

SHOWN = 200  # characters of a dropped record's text that a data card may show


class Gave(NamedTuple):
    """Step number `step` gave so many records; where it gave none, why, and the beginning of the text."""

    step: int
    number: int
    why: str = ""
    shown: str = ""


class Asked(NamedTuple):
    """The key by which a `Shared` step judges the record, and what becomes of it where it stays."""

    step: int
    key: bytes
    shown: str
    later: list


class Kept(NamedTuple):
    """A record that has passed all steps, as it is written, and what a data card counts of it."""

    line: bytes
    split: str
    characters: int
    language: str
    label: str


class Bad(NamedTuple):
    where: str
    why: str


@dataclasses.dataclass(frozen=True)
class Splits:
    """Which split a record belongs to: by a hash of its field `by`, so that what is equal in it stays together."""

    validation_share: float = 0.0
    by: str = "text"

    def of(self, record: Record, read_from: str) -> str:
        """read_from: the split of the source, which decides where no share is asked for."""
        if not self.validation_share or read_from == "test":
            return read_from
        if reason := lacks(record, self.by):
            raise ValueError(reason)
        value = json.dumps(record[self.by], sort_keys=True, default=str).encode()
        number = int.from_bytes(hashlib.blake2b(value, digest_size=8).digest())
        return "validation" if number < self.validation_share * 2**64 else "train"


def outcomes(steps: tuple[Step, ...], splits: Splits, chunk: tuple[str, list[tuple[str, Record]]]) -> list[list]:
    """What becomes of each record of (split, [(where, record), …])."""
    read_from, records = chunk
    return [_after(steps, 0, splits, read_from, where, record) for where, record in records]


def _after(steps: tuple[Step, ...], i: int, splits: Splits, read_from: str, where: str, record: Record) -> list:
    """Events from step i on, in the order in which they are counted."""
    try:
        if i == len(steps):
            return [_kept(record, splits.of(record, read_from))]
        if isinstance(steps[i], Shared):
            key, found, why = steps[i].key(record), [record], ""
        else:
            key, (found, why) = None, steps[i].clean(record)
    except Exception as error:  # whatever a step of the user's raises
        name = type(steps[i]).__name__ if i < len(steps) else "writing"
        return [Bad(where, f"{name}: {error if isinstance(error, ValueError) else user_code.described(error)}")]
    later = [event for made in found for event in _after(steps, i + 1, splits, read_from, where, made)]
    if key is not None:
        return [Asked(i, key, _shown(record), later)]
    return [Gave(i, len(found), why, "" if found else _shown(record)), *later]


def _shown(record: Record) -> str:
    text = record.get("text")
    return text[:SHOWN] if isinstance(text, str) else str(record)[:SHOWN]


def _kept(record: Record, split: str) -> Kept:
    text = record.get("text")
    return Kept(
        json_line(record),
        split,
        len(text) if isinstance(text, str) else 0,
        _word(record.get("language")),
        _word(record.get("label")),
    )


def _word(value: Any) -> str:
    return "" if value is None else str(value)[:100]
