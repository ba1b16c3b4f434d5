"""Packs a stream of tokens into rows of seq_len, and collates rows into batches.

The stream of a split is `S d1 S d2 ... S dn S`, where S is the separator. A row consists of pieces.
A piece (start, length) has the inputs stream[start : start + length] and the targets stream[start +
1 : start + length + 1]. The pieces of a plan divide [0, len(stream) - 1) without gap or overlap. So
every token of every document, and the separator after it, is a target with weight 1 exactly once
per epoch, in training and evaluation, under every packing. Bits per byte are therefore nats / ln 2
/ UTF-8 bytes of all documents; separators cost nats but count no bytes.

A separator belongs to the document after it: it has position 0 of that document's segment, and
predicts the document's first token. The last token of the document before predicts it. Some
published models use different tokens before and after a text (Llama's <s> and </s>); then the model
reads the first and predicts the second.
"""

from typing import Literal, NamedTuple

import numpy as np

from bigmodel_jax.data.fields import Field, per_token
from bigmodel_jax.data.text.best_fit import best_fit

TOKENS = ("tokens", "targets", "segment_ids", "positions")
Packing = Literal["concat", "first_fit", "best_fit", "none"]

OPEN_ROWS = 512  # first_fit looks only at this many rows, so its time stays linear in the documents


class Plan(NamedTuple):
    """Row r holds pieces first[r] .. first[r + 1]. Piece p is stream[starts[p] : starts[p] +
    lengths[p]].
    """

    starts: np.ndarray
    lengths: np.ndarray
    first: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.first) - 1


def make_plan(packing: Packing, offsets: np.ndarray, seq_len: int) -> Plan:
    """Return the rows of a stream whose documents begin at `offsets`, each with its separator in
    front.

    The last offset is that of the closing separator.

    - concat: the stream is cut every seq_len tokens, and documents continue in the next row. Only
      the last row has padding.
    - first_fit: documents are cut at seq_len, and packed in the order of the stream where they fit.
    - best_fit: the same pieces, the longest first, each placed where it leaves the least room.
    - none: one document, or one piece of it, per row.
    """
    if packing == "concat":
        starts = np.arange(0, offsets[-1], seq_len)
        return Plan(starts, np.minimum(seq_len, offsets[-1] - starts), np.arange(len(starts) + 1))
    return pack(packing, *_cut(offsets, seq_len), seq_len)


def _cut(offsets: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (starts, lengths) of the documents' pieces. Only a document's last may be shorter."""
    sizes = np.diff(offsets)
    count = -(-sizes // seq_len)
    nth = ranges(np.zeros_like(count), count)
    starts = np.repeat(offsets[:-1], count) + nth * seq_len
    return starts, np.minimum(seq_len, np.repeat(sizes, count) - nth * seq_len)


def pack(
    packing: Literal["first_fit", "best_fit", "none"], starts: np.ndarray, lengths: np.ndarray, seq_len: int
) -> Plan:
    """Pack whole pieces, none longer than seq_len, into rows."""
    if packing == "none":
        return Plan(starts, lengths, np.arange(len(starts) + 1))
    row = (first_fit if packing == "first_fit" else best_fit)(lengths, seq_len)
    # Sorting by row puts the pieces of each row next to each other.
    order = np.argsort(row, kind="stable")
    first = np.append(0, np.cumsum(np.bincount(row)))
    return Plan(starts[order], lengths[order], first)


def first_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Return each piece's row: the first of the last OPEN_ROWS rows with room, or a new one."""
    free = np.full(len(lengths), capacity)
    row = np.empty(len(lengths), np.int64)
    used = 0
    for i, length in enumerate(lengths.tolist()):
        low = max(0, used - OPEN_ROWS)
        # The row after the last used one is empty, so one row always has room.
        r = low + int(np.argmax(free[low : used + 1] >= length))
        free[r] -= length
        row[i] = r
        used = max(used, r + 1)
    return row


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return concatenate([arange(s, s + n) for s, n in zip(starts, lengths)]) without a loop."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def row(seq_len: int) -> dict[str, Field]:
    """Return the fields of a batch that `collate` makes."""
    return per_token(TOKENS, seq_len) | per_token(["weights"], seq_len, "float32")


def collate(
    stream: np.ndarray, plan: Plan, rows: np.ndarray, seq_len: int, offsets: np.ndarray, start: int | None = None
) -> dict[str, np.ndarray]:
    """Return arrays (len(rows), seq_len): tokens, targets, segment_ids and positions int32, weights
    float32.

    segment_ids count from 1 in each row, and are 0 in padding, which has weight 0. positions count
    from 0 in each segment. A segment begins at every offset and at every piece, so a piece that
    continues a document is a segment of its own. Where `start` is given, it replaces the separator
    at each offset in the inputs. The separator remains the target that ends a document.
    """
    shape = (len(rows), seq_len)
    count = plan.first[rows + 1] - plan.first[rows]
    pieces = ranges(plan.first[rows], count)
    starts, lengths = plan.starts[pieces], plan.lengths[pieces]
    # Each piece's place in the flattened batch: the start of its row, plus the lengths before it in
    # the row.
    before = np.cumsum(lengths) - lengths
    row_of_piece = np.repeat(np.arange(len(rows)), count)
    begins = row_of_piece * seq_len + before - before[np.cumsum(count) - count][row_of_piece]

    # Each piece is read together with the token after it, so a stream on disk is read only once.
    source, place = ranges(starts, lengths + 1), ranges(begins, lengths)
    found, last = stream[source], np.cumsum(lengths + 1) - 1
    tokens, targets = np.zeros((2, shape[0] * shape[1]), np.int32)
    weights = np.zeros(len(tokens), np.float32)
    # Inputs drop the last token of each piece, and targets the first.
    tokens[place], targets[place], weights[place] = np.delete(found, last), np.delete(found, last - lengths), 1.0

    # Documents are found by their offsets, because a separator's id may also occur inside a
    # document.
    lowest, highest = np.searchsorted(offsets, starts), np.searchsorted(offsets, starts + lengths)
    documents = begins.repeat(highest - lowest) + offsets[ranges(lowest, highest - lowest)]
    documents -= starts.repeat(highest - lowest)
    if start is not None:
        tokens[documents] = start
    new_segment = np.zeros(len(tokens), bool)
    new_segment[begins] = new_segment[documents] = True

    new_segment, real = new_segment.reshape(shape), (weights > 0).reshape(shape)
    column = np.arange(seq_len, dtype=np.int32)
    segment_ids = np.cumsum(new_segment, axis=1, dtype=np.int32) * real
    # The running maximum gives the column at which the current segment began.
    positions = (column - np.maximum.accumulate(np.where(new_segment, column, 0), axis=1)) * real
    return {
        "tokens": tokens.reshape(shape),
        "targets": targets.reshape(shape),
        "segment_ids": segment_ids,
        "positions": positions.astype(np.int32),
        "weights": weights.reshape(shape),
    }
