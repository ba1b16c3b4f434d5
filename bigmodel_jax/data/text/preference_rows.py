"""Rows of two texts from a stream of prompts and answers: which rows fit, and the batch arrays."""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

from bigmodel_jax.data.text import packing

TooLong = Literal["drop", "cut"]


class Stream(NamedTuple):
    """The tokens of a split.

    - tokens: all prompts and answers, one segment after another.
    - offsets: where each segment begins.
    - prompts (answers + 1,): the segment of each answer's prompt. The last entry is the number of
      segments.
    - labels (answers,): 1 for a wanted answer.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    prompts: np.ndarray
    labels: np.ndarray


class Cuts(NamedTuple):
    """The parts of the stream that are read for the rows that fit.

    - rows (N, 3): the segments of prompt and answers.
    - numbers (N,): the rows' numbers among all rows.
    - skip (N,): tokens that are left out at the prompt's front.
    - prompt (N,), answers (N, 2): tokens that are read of each.
    """

    rows: np.ndarray
    numbers: np.ndarray
    skip: np.ndarray
    prompt: np.ndarray
    answers: np.ndarray


def fit(stream: Stream, rows: np.ndarray, seq_len: int, too_long: TooLong) -> tuple[Cuts, dict[str, int]]:
    """Return the rows that fit, and how many were dropped or cut.

    A pair whose answers are equal after the cut is dropped.
    """
    sizes = np.diff(stream.offsets)[rows]
    prompt, answers = sizes[:, 0], sizes[:, 1:]
    over = prompt + answers.max(1) - seq_len
    skip = np.clip(over, 0, prompt - 1)  # at least one token of the prompt stays before an answer
    # An answer is cut only where the prompt cannot be shortened any further.
    kept = np.minimum(answers, (seq_len - (prompt - skip))[:, None])
    short = (kept < answers).any(1)
    counts = {"dropped": 0, "prompts cut at the front": 0, "answers cut at the end": 0}
    drop = over > 0 if too_long == "drop" else (kept < 1).any(1)
    for i in np.flatnonzero(short & ~drop):
        a, b = (stream.tokens[s : s + n] for s, n in zip(stream.offsets[rows[i, 1:]], kept[i], strict=True))
        drop[i] = np.array_equal(a, b)
    counts["dropped"] = int(drop.sum())
    if too_long == "cut":
        counts["prompts cut at the front"] = int((skip > 0)[~drop].sum())
        counts["answers cut at the end"] = int((kept < answers)[~drop].sum())
    keep = np.flatnonzero(~drop)
    return Cuts(rows[keep], keep, skip[keep], (prompt - skip)[keep], kept[keep]), counts


@dataclasses.dataclass(frozen=True)
class PreferenceRows:
    """The rows of one split. `meta` holds counts and names."""

    stream: Stream
    cuts: Cuts
    seq_len: int
    meta: dict
    labelled: bool

    def __len__(self) -> int:
        return len(self.cuts.rows)

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        """Return arrays (n, 2, T), and label (n,) int32 where rows have labels.

        tokens, targets, segment_ids (1, and 0 in padding) and positions are int32, weights float32.
        """
        rows, _, skip, prompt, answers = (x[indices] for x in self.cuts)
        n = len(indices)
        starts = self.stream.offsets[rows]
        starts[:, 0] += skip
        # A batch has two pieces per text: where each comes from, how long it is, and where it goes.
        source = np.stack([np.repeat(starts[:, 0], 2), starts[:, 1:].reshape(-1)], 1).reshape(-1)
        sizes = np.stack([np.repeat(prompt, 2), answers.reshape(-1)], 1)
        first = np.arange(2 * n) * self.seq_len
        place = np.stack([first, first + sizes[:, 0]], 1).reshape(-1)
        tokens = np.zeros(2 * n * self.seq_len, np.int32)
        tokens[packing.ranges(place, sizes.reshape(-1))] = self.stream.tokens[packing.ranges(source, sizes.reshape(-1))]
        start = self.meta["start"]
        begins = np.repeat((skip > 0) & (self.stream.tokens[starts[:, 0] - skip] == start), 2)
        tokens[first[begins]] = start  # a prompt that is cut begins with the start token again
        return self._arrays(tokens.reshape(n, 2, -1), sizes.reshape(n, 2, 2)) | self._labels(indices)

    def _arrays(self, tokens: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return a batch's arrays; sizes (n, 2, 2): tokens of prompt and answer of each text."""
        column, prompt, whole = np.arange(self.seq_len), sizes[..., :1], sizes.sum(-1, keepdims=True)
        held = column < whole
        targets = np.concatenate([tokens[..., 1:], np.zeros_like(tokens[..., :1])], -1)
        return {
            "tokens": tokens,
            "targets": targets,
            "segment_ids": held.astype(np.int32),
            "positions": (column * held).astype(np.int32),
            # Place t predicts token t + 1, so the prompt's last place predicts the answer.
            "weights": ((column >= prompt - 1) & (column < whole - 1)).astype(np.float32),
        }

    def _labels(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"label": self.stream.labels[self.cuts.numbers[indices]]} if self.labelled else {}

    def counts(self) -> dict:
        fed = int(2 * self.cuts.prompt.sum() + self.cuts.answers.sum())
        found = {"rows of two texts": len(self)}
        if self.labelled:
            found["wanted answers"] = int(self.stream.labels[self.cuts.numbers].sum())
        return found | {
            "too long, dropped": self.meta["dropped"],
            "prompts cut at the front": self.meta["prompts cut at the front"],
            "answers cut at the end": self.meta["answers cut at the end"],
            "tokens": fed,
            "tokens of a prompt": float(self.cuts.prompt.mean()),
            "tokens of an answer": float(self.cuts.answers.mean()),
            "padding, % of row cells": 100 * (1 - fed / (2 * len(self) * self.seq_len)),
            "skipped records": len(self.meta["bad_records"]),
        }
