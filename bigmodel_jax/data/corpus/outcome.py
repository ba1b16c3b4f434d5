"""The outcome of a record after a list of steps, computed independently of other records.

A `Shared` step depends on other records, so its decision is left open as a question. One process
answers the questions later, in the order of the records. Meanwhile the steps after the question
have already processed the record as if it stayed.
"""

import dataclasses
import hashlib
import json
from typing import Any, NamedTuple

from bigmodel_jax.core import user_code
from bigmodel_jax.data.base import lacks
from bigmodel_jax.data.cleaning.step import Record, Shared, Step, StepError
from bigmodel_jax.data.sources.array_record_files import json_line

SHOWN = 200  # characters of a dropped record's text that a data card may show


class Gave(NamedTuple):
    """Step number `step` gave `number` records. If it gave none, `why` says why, and `shown` begins
    the text.
    """

    step: int
    number: int
    why: str = ""
    shown: str = ""


class Asked(NamedTuple):
    """A question: the key by which a `Shared` step judges the record, and the events after it."""

    step: int
    key: bytes
    shown: str
    later: list


class Kept(NamedTuple):
    """A record that has passed all steps.

    `line` is written to a shard of `split`. The data card adds up characters, and counts records by
    language and by label.
    """

    line: bytes
    split: str
    characters: int
    language: str
    label: str


class Bad(NamedTuple):
    """A bad record: its place, and what is wrong with it."""

    where: str
    why: str


@dataclasses.dataclass(frozen=True)
class Splits:
    """Assigns records to splits by a hash of the field `by`, so that equal values stay together."""

    validation_share: float = 0.0
    by: str = "text"

    def of(self, record: Record, read_from: str) -> str:
        """Return the split of a record. `read_from` is its split in the source.

        If `validation_share` is 0, and for test records, this is the source's split.
        """
        if not self.validation_share or read_from == "test":
            return read_from
        if reason := lacks(record, self.by):
            raise ValueError(reason)
        value = json.dumps(record[self.by], sort_keys=True, default=str).encode()
        number = int.from_bytes(hashlib.blake2b(value, digest_size=8).digest())
        # The hash is uniform over 0 .. 2**64 - 1.
        return "validation" if number < self.validation_share * 2**64 else "train"


def outcomes(steps: tuple[Step, ...], splits: Splits, chunk: tuple[str, list[tuple[str, Record]]]) -> list[list]:
    """Return the events of each record of a chunk (split, [(where, record), …])."""
    read_from, records = chunk
    return [_after(steps, 0, splits, read_from, where, record) for where, record in records]


def _after(steps: tuple[Step, ...], i: int, splits: Splits, read_from: str, where: str, record: Record) -> list:
    """Return the events of a record from step i on, in the order in which they are counted."""
    try:
        if i == len(steps):
            return [_kept(record, splits.of(record, read_from))]
        if isinstance(steps[i], Shared):
            key, found, why = steps[i].key(record), [record], ""
        else:
            key, (found, why) = None, steps[i].clean(record)
    except StepError:  # no record is at fault, so none may be skipped
        raise
    except Exception as error:  # a user's own step may raise anything
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
