"""Span corruption for encoder-decoder models (T5, arXiv:1910.10683, section 3.1.4).

In "Thank you for inviting me to your party last week", with sentinels <X>, <Y> and the separator S:

    encoder   Thank you <X> me to your party <Y> week S
    decoder   S <X> for inviting <Y> last              (the tokens, shifted right)
    targets   <X> for inviting <Y> last S

Sentinels have ids of their own: in each row the first is the tokenizer's vocab_size, and the next
is one larger. As in T5, a row is one sequence, even where it crosses the end of a document.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from bigmodel_jax.core.ranges import AtLeastOne, ProperShare
from bigmodel_jax.data import shuffle
from bigmodel_jax.data.fields import Field
from bigmodel_jax.data.text import encoder_decoder_rows, text
from bigmodel_jax.data.text.text import TextData, TextRows

EVALUATION = shuffle.start(0)  # every evaluation removes the same spans of a row


@dataclasses.dataclass(frozen=True)
class SpanCorruptionData(TextData):
    """Rows of `seq_len` tokens of text, from which spans are removed, for encoder-decoders."""

    compared: ClassVar = TextData.compared | {"noise_density": "prepares", "mean_span": "prepares"}

    noise_density: ProperShare = 0.15
    "share of the tokens that are removed"
    mean_span: AtLeastOne = 3.0
    "mean length of a span, in tokens"

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.noise_density < 1:
            raise ValueError(f"data.noise_density: {self.noise_density} must be above 0 and below 1")
        if self.mean_span < 1:
            raise ValueError(f"data.mean_span: {self.mean_span} must be 1 or more")
        if self.seq_len < 2:
            raise ValueError(f"data.seq_len: {self.seq_len} must be 2 or more: one token to keep, one to take out")

    def open(self, split: str) -> "SpanRows":
        rows = super().open(split)
        fields = {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)}
        return SpanRows(**fields, noise_density=self.noise_density, mean_span=self.mean_span)

    def row(self) -> dict[str, Field]:
        return encoder_decoder_rows.row(*row_lengths(self.seq_len, self.noise_density, self.mean_span))

    def requirements(self) -> dict:
        _, num_spans = num_noise(self.seq_len, self.noise_density, self.mean_span)
        return {"vocab_size": text.vocab_size(self) + num_spans, "max_seq_len": self.seq_len, "text_bos": False}

    def baselines(self) -> dict[str, float]:
        return {}  # xz is no baseline here, because it reads only earlier bytes


@dataclasses.dataclass(frozen=True)
class SpanRows(TextRows):
    """The rows of `TextRows` with removed spans, which are random only in training."""

    noise_density: float
    mean_span: float

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        rows = super().batch(indices, None)
        seeds = shuffle.noise(EVALUATION, indices) if noise is None else noise
        _, num_spans = num_noise(self.seq_len, self.noise_density, self.mean_span)
        out = encoder_decoder_rows.empty(len(indices), *row_lengths(self.seq_len, self.noise_density, self.mean_span))
        for row, seed in enumerate(seeds):
            # The targets are the row's text without the separator in front, so they are used and
            # not the tokens.
            sequence = rows["targets"][row, rows["weights"][row] > 0]
            if len(sequence) > 1:
                self._fill(out, row, sequence, np.random.default_rng(seed))
        if noise is None and self.token_bytes.any():
            # Sentinels stand for no text, so they count 0 bytes.
            num_bytes = np.append(self.token_bytes, np.zeros(num_spans, self.token_bytes.dtype))
            out["target_bytes"] = num_bytes[out["targets"]]
        return out

    def _fill(self, out: dict[str, np.ndarray], row: int, sequence: np.ndarray, rng: np.random.Generator) -> None:
        taken = noise_mask(rng, len(sequence), self.noise_density, self.mean_span)
        first_sentinel = len(self.token_bytes)
        source = np.append(replace_spans(sequence, taken, first_sentinel), self.separator)
        target = np.append(replace_spans(sequence, ~taken, first_sentinel), self.separator)
        encoder_decoder_rows.fill(out, row, source, target, self.separator)


def row_lengths(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """Return the lengths of the encoder's and the decoder's sequence, end tokens included."""
    num_tokens, num_spans = num_noise(length, density, mean_span)
    return length - num_tokens + num_spans + 1, num_tokens + num_spans + 1


def num_noise(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """Return (tokens, spans) to remove from a row of `length` tokens: at least one, never all."""
    num_tokens = min(max(round(length * density), 1), length - 1)
    num_spans = max(round(num_tokens / mean_span), 1)
    return num_tokens, min(num_spans, length - num_tokens)


def noise_mask(rng: np.random.Generator, length: int, density: float, mean_span: float) -> np.ndarray:
    """Return a boolean mask (length,) of removed tokens; kept and removed spans alternate.

    The first span is kept. The algorithm is random_spans_noise_mask of
    google-research/text-to-text-transfer-transformer.
    """
    num_tokens, num_spans = num_noise(length, density, mean_span)
    kept = random_lengths(rng, length - num_tokens, num_spans)
    taken = random_lengths(rng, num_tokens, num_spans)
    return np.repeat(np.tile([False, True], num_spans), np.stack([kept, taken], axis=1).ravel())


def random_lengths(rng: np.random.Generator, total: int, parts: int) -> np.ndarray:
    """Return (parts,) positive whole numbers with the sum `total`, drawn uniformly."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def replace_spans(tokens: np.ndarray, gone: np.ndarray, first_sentinel: int) -> np.ndarray:
    """Replace each run of `gone` tokens by one sentinel, counted from `first_sentinel`."""
    # A run begins where the token before it is kept.
    begins = gone & ~np.append(False, gone[:-1])
    return np.where(begins, first_sentinel + np.cumsum(begins) - 1, tokens)[begins | ~gone]
