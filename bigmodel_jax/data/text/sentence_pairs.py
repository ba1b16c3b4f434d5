"""Sentence pairs for BERT's pretraining: next-sentence prediction and masked tokens.

The source is arXiv:1810.04805, section 3.1. A row is `[CLS] A [SEP] B [SEP]`. "Sentence" is the
paper's word for any span of text (section A.2). A row's share of a document is cut in two at the
end of a sentence, or in the middle where there is none. In half of the rows B is replaced by the
second part of a row of another document.

Shapes: B rows, T tokens of a row.
"""

import dataclasses

import numpy as np

from bigmodel_jax.core.ranges import Count
from bigmodel_jax.data import shuffle
from bigmodel_jax.data.fields import Field, per_row, per_token
from bigmodel_jax.data.text import packing
from bigmodel_jax.data.text.masking import MaskedRows, MaskedTextData, hide, mask_token
from bigmodel_jax.data.text.packing import Packing
from bigmodel_jax.data.text.text import tokenizer
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, TokenizerConfig

SPECIAL = 3  # [CLS], and [SEP] twice
FOLLOWS, RANDOM = 0, 1  # the labels of next_sentence, as in BERT


@dataclasses.dataclass(frozen=True)
class SentencePairData(MaskedTextData):
    """Rows of two spans with masked tokens, for `BertPretraining`.

    The tokenizer's own [CLS], [SEP] and mask tokens are used. If it lacks them, its separator is
    [SEP], and the mask token and [CLS] get the ids after its last token. The model's vocabulary is
    larger by these ids.
    """

    tokenizer: TokenizerConfig = TokenizerConfig(kind="wordpiece")
    "the tokenizer file, or the kind and size of one that is trained on the training texts"
    seq_len: Count = 128
    "tokens of a row"
    packing: Packing = "none"
    "always none: a row is cut from one document"

    def __post_init__(self):
        super().__post_init__()
        if self.packing != "none":
            raise ValueError(
                f"data.packing = {self.packing!r}; it must be 'none', as each row holds one pair of sentences"
            )
        if self.seq_len < SPECIAL + 2:
            raise ValueError(f"data.seq_len: {self.seq_len}; a pair takes {SPECIAL + 2} tokens or more")

    def open(self, split: str) -> "SentencePairRows":
        rows = super().open(split)
        fields = {f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)}
        plan, documents = pair_plan(rows.offsets, self.seq_len - SPECIAL)
        if documents.num_rows < 2:
            raise ValueError(
                f"data.source: the {split} split has {documents.num_rows} documents of two tokens or more; "
                "pairs of sentences need two, since a B that does not follow comes from another document"
            )
        tok = tokenizer(self)
        marks = {"documents": documents.first, "cls": cls_token(tok), "ends_sentence": ends_sentence(tok)}
        return SentencePairRows(**fields | {"plan": plan} | marks)

    def row(self) -> dict[str, Field]:
        return packing.row(self.seq_len) | per_token(["token_types"], self.seq_len) | per_row(["next_sentence"])

    def requirements(self) -> dict:
        needs = super().requirements()
        return needs | {"vocab_size": max(needs["vocab_size"], cls_token(tokenizer(self)) + 1), "num_token_types": 2}


@dataclasses.dataclass(frozen=True)
class SentencePairRows(MaskedRows):
    """documents (D + 1,): the first row of each, and the end; ends_sentence: by token id."""

    documents: np.ndarray
    cls: int
    ends_sentence: np.ndarray

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        """Return the rows.

        tokens, targets, token_types, segment_ids and positions (B, T) int32; weights (B, T)
        float32, 1 where a token is predicted; next_sentence (B,) int32, 0 where B follows A. Pairs
        are random in training, and the same in every evaluation.
        """
        indices = np.asarray(indices)
        noise = shuffle.noise(shuffle.start(0), indices) if noise is None else noise
        # Five independent draws per row: whether B is random, A's cut, B's row, B's cut, and the
        # masks.
        draw = shuffle.mix(noise + np.arange(1, 6, dtype=np.uint64)[:, None] * shuffle.GOLDEN)
        random = (draw[0] >> np.uint64(63)).astype(bool)
        start, length, cut = self._spans(indices, draw[1])
        rest = length - cut
        begin = np.where(random, self._elsewhere(indices, rest, draw[2], draw[3]), start + cut)
        rest = np.minimum(rest, self._document_end(begin) - begin)
        out = self._lay_out(start, cut, begin, rest)
        targets, allowed = out["tokens"], out.pop("text")
        out["tokens"], chosen = hide(targets, allowed, draw[4], self.mask_rate, self.mask_token, self.vocab_size)
        label = np.where(random, RANDOM, FOLLOWS).astype(np.int32)
        return out | {"targets": targets, "weights": chosen.astype(np.float32), "next_sentence": label}

    def _spans(self, rows: np.ndarray, draw: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (start in the stream, length, tokens before the cut) of each row's text, (B,)."""
        start, length = self.plan.starts[rows], self.plan.lengths[rows]
        column = np.arange(1, self.seq_len - SPECIAL)
        inside = column < length[:, None]
        before = self.stream[np.where(inside, start[:, None] + column - 1, 0)]
        allowed = inside & self.ends_sentence[before]
        # A span in which no sentence ends is cut in its middle.
        allowed |= ~allowed.any(axis=1, keepdims=True) & (column == length[:, None] // 2)
        nth = (draw % allowed.sum(axis=1).astype(np.uint64)).astype(np.int64)
        return start, length, 1 + np.argmax(np.cumsum(allowed, axis=1) > nth[:, None], axis=1)

    def _elsewhere(
        self, rows: np.ndarray, wanted: np.ndarray, row_draw: np.ndarray, cut_draw: np.ndarray
    ) -> np.ndarray:
        """Return where in the stream a span of another document begins, (B,).

        It begins after the cut of one of that document's rows. Near the document's end it begins
        earlier, so that it has `wanted` tokens: a shorter span would reveal that it does not
        follow.
        """
        document = np.searchsorted(self.documents, rows, side="right") - 1
        first, past = self.documents[document], self.documents[document + 1]
        # A row of another document is drawn: numbers from `first` on skip the own document's rows.
        other = (row_draw % (len(self) - (past - first)).astype(np.uint64)).astype(np.int64)
        other += np.where(other >= first, past - first, 0)
        start, _, cut = self._spans(other, cut_draw)
        document = np.searchsorted(self.offsets, start, side="right") - 1
        return np.maximum(self.offsets[document] + 1, np.minimum(start + cut, self.offsets[document + 1] - wanted))

    def _document_end(self, place: np.ndarray) -> np.ndarray:
        return self.offsets[np.searchsorted(self.offsets, place, side="right")]

    def _lay_out(self, start, cut, begin, rest) -> dict[str, np.ndarray]:
        """Return the unmasked rows; "text" marks their tokens except special tokens and padding."""
        column = np.arange(self.seq_len)
        start, cut, begin, rest = (x[:, None] for x in (start, cut, begin, rest))
        second = cut + 2  # the column of B's first token
        in_a, in_b = (column >= 1) & (column <= cut), (column >= second) & (column < second + rest)
        place = np.where(in_a, start + column - 1, np.where(in_b, begin + column - second, 0))
        real = column <= second + rest
        tokens = np.where(in_a | in_b, self.stream[place].astype(np.int32), self.separator * real)
        tokens[:, 0] = self.cls
        positions = np.broadcast_to(column, real.shape)
        types = real & (column >= second)
        arrays = {"tokens": tokens, "token_types": types, "segment_ids": real, "positions": positions * real}
        return {name: x.astype(np.int32) for name, x in arrays.items()} | {"text": in_a | in_b}


def pair_plan(offsets: np.ndarray, width: int) -> tuple[packing.Plan, packing.Plan]:
    """Return (rows of at most `width` tokens of one document, the rows of each document as pieces).

    The rows hold no separators. If a single token of a document is left over, it makes no row.
    """
    sizes = np.diff(offsets) - 1
    count = -(-sizes // width)
    nth = packing.ranges(np.zeros_like(count), count)
    document = np.repeat(np.arange(len(sizes)), count)
    starts, lengths = offsets[document] + 1 + nth * width, np.minimum(width, sizes[document] - nth * width)
    kept = lengths >= 2
    starts, lengths, document = starts[kept], lengths[kept], document[kept]
    first = np.append(np.flatnonzero(np.diff(document, prepend=-1)), len(starts))
    rows = packing.Plan(starts, lengths, np.arange(len(starts) + 1))
    return rows, packing.Plan(starts, lengths, first)


def cls_token(tok: Tokenizer) -> int:
    """Return the id of [CLS]."""
    own = tok.model.token_to_id("[CLS]")
    return max(tok.vocab_size, mask_token(tok) + 1) if own is None else own


def ends_sentence(tok: Tokenizer) -> np.ndarray:
    """Return a boolean array (vocab_size,): the tokens that end a sentence."""
    names = (tok.model.id_to_token(i) or "" for i in range(tok.vocab_size))
    # A token may hold a closing quote or bracket after the mark.
    return np.array([name.rstrip("\"'”’)").endswith((".", "!", "?")) for name in names])
