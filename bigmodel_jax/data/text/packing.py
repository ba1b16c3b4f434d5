"""From one long stream of tokens to rows of seq_len: which pieces lie in which row, and the arrays of a batch.

The stream of a split is `S d1 S d2 ... S dn S` (S the separator). A row holds pieces; a piece (start, length) feeds
stream[start : start + length] and is asked for stream[start + 1 : start + length + 1]. The pieces of a plan cut
[0, len(stream) - 1) without gap or overlap, so every token of every document, and the separator that ends it, is a
target with weight 1 exactly once per pass, in training and in evaluation, under every packing. Hence bits per byte over
a pass = nats / ln 2 / UTF-8 bytes of all documents, where the separators cost nats and count no bytes.

A separator belongs to the document that follows it: it is position 0 of that document's segment, predicts its first
token, and is itself predicted by the last token of the document before. Where a published model reads another token in
front of a text than the one that ends it (Llama's <s> and </s>), the model is fed the first and asked for the second.
"""

from typing import Literal, NamedTuple

import numpy as np

from bigmodel_jax.data.fields import Field, per_token
from bigmodel_jax.data.text.best_fit import best_fit

TOKENS = ("tokens", "targets", "segment_ids", "positions")
Packing = Literal["concat", "first_fit", "best_fit", "none"]

OPEN_ROWS = 512  # first_fit looks at so many rows; a plan over millions of documents stays linear


class Plan(NamedTuple):
    """Row r holds pieces first[r] .. first[r + 1]; piece p is stream[starts[p] : starts[p] + lengths[p]]."""

    starts: np.ndarray
    lengths: np.ndarray
    first: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.first) - 1


def make_plan(packing: Packing, offsets: np.ndarray, seq_len: int) -> Plan:
    """The rows of a stream whose documents (each with its separator in front) start at `offsets`; the last offset is
    the closing separator's.

    concat: the stream cut every seq_len tokens, documents may continue in the next row; no padding but in the last row.
    first_fit: documents cut at seq_len, several in a row where they fit, in the order of the stream. best_fit: the same
    pieces, the longest first, each where it leaves the least room. none: one document, or piece of one, per row.
    """
    if packing == "concat":
        starts = np.arange(0, offsets[-1], seq_len)
        return Plan(starts, np.minimum(seq_len, offsets[-1] - starts), np.arange(len(starts) + 1))
    sizes = np.diff(offsets)
    count = -(-sizes // seq_len)
    nth = ranges(np.zeros_like(count), count)
    starts = np.repeat(offsets[:-1], count) + nth * seq_len
    lengths = np.minimum(seq_len, np.repeat(sizes, count) - nth * seq_len)
    return pack(packing, starts, lengths, seq_len)


def pack(
    packing: Literal["first_fit", "best_fit", "none"], starts: np.ndarray, lengths: np.ndarray, seq_len: int
) -> Plan:
    """The rows of whole pieces, none of which is longer than seq_len."""
    if packing == "none":
        return Plan(starts, lengths, np.arange(len(starts) + 1))
    row = (first_fit if packing == "first_fit" else best_fit)(lengths, seq_len)
    order = np.argsort(row, kind="stable")
    first = np.append(0, np.cumsum(np.bincount(row)))
    return Plan(starts[order], lengths[order], first)


def first_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each piece: the first of the last OPEN_ROWS rows with room for it, or a new one."""
    free = np.full(len(lengths), capacity)
    row = np.empty(len(lengths), np.int64)
    used = 0
    for i, length in enumerate(lengths.tolist()):
        low = max(0, used - OPEN_ROWS)
        # The row after the last used one is empty, so there is always a fit.
        r = low + int(np.argmax(free[low : used + 1] >= length))
        free[r] -= length
        row[i] = r
        used = max(used, r + 1)
    return row


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """concatenate([arange(s, s + n) for s, n in zip(starts, lengths)]), without the loop."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def row(seq_len: int) -> dict[str, Field]:
    """What `collate` makes."""
    return per_token(TOKENS, seq_len) | per_token(["weights"], seq_len, "float32")


def collate(
    stream: np.ndarray, plan: Plan, rows: np.ndarray, seq_len: int, offsets: np.ndarray, start: int | None = None
) -> dict[str, np.ndarray]:
    """Arrays (len(rows), seq_len) of those rows: tokens, targets, segment_ids, positions int32, weights float32.

    segment_ids count from 1 in each row and are 0 in padding, which also has weight 0; positions count from 0 in each
    segment. A segment begins at every offset and at every piece, so a piece that continues a document is a segment of
    its own. `start` is fed at each offset in the place of the separator, which stays the target that ends a document.
    """
    shape = (len(rows), seq_len)
    count = plan.first[rows + 1] - plan.first[rows]
    pieces = ranges(plan.first[rows], count)
    starts, lengths = plan.starts[pieces], plan.lengths[pieces]
    # Where each piece begins in the batch laid out flat: after the pieces before it in its row.
    before = np.cumsum(lengths) - lengths
    row_of_piece = np.repeat(np.arange(len(rows)), count)
    begins = row_of_piece * seq_len + before - before[np.cumsum(count) - count][row_of_piece]

    # Each piece with the token behind it is read at once: a stream on disk is read once.
    source, place = ranges(starts, lengths + 1), ranges(begins, lengths)
    found, last = stream[source], np.cumsum(lengths + 1) - 1
    tokens, targets = np.zeros((2, shape[0] * shape[1]), np.int32)
    weights = np.zeros(len(tokens), np.float32)
    tokens[place], targets[place], weights[place] = np.delete(found, last), np.delete(found, last - lengths), 1.0

    # The documents that begin in each piece, by their offsets: a token's value says nothing about where it stands.
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
    positions = (column - np.maximum.accumulate(np.where(new_segment, column, 0), axis=1)) * real
    return {
        "tokens": tokens.reshape(shape),
        "targets": targets.reshape(shape),
        "segment_ids": segment_ids,
        "positions": positions.astype(np.int32),
        "weights": weights.reshape(shape),
    }
