"""Pairs of texts for encoder-decoder models: translation, summarization, or questions and answers.

encoder   prefix and input, S
decoder   start, target            (shifted right)
targets   target, S
"""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from bigmodel_jax.core.ranges import Count, CountOrZero
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import DataConfig, lacks, log_skipped
from bigmodel_jax.data.fields import Field
from bigmodel_jax.data.sources.source import Source
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.text import documents, encoder_decoder_rows, packing, text
from bigmodel_jax.data.text.text import TextData
from bigmodel_jax.data.text.token_stream import TokenStream
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, TokenizerConfig

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TextPairData(DataConfig):
    """Pairs of texts. A row is one pair, each side padded on the right.

    A batch holds encoder_tokens and encoder_segment_ids (B, input_len) int32; tokens, targets,
    segment_ids and positions (B, target_len) int32; weights (B, target_len) float32; in evaluation
    also target_bytes (B, target_len) int32.
    """

    required_by: ClassVar = {
        "vocab_size": "tokenizer",
        "max_seq_len": "input_len, data.target_len",
        "decoder_start_token_id": "decoder_start",
        "eos_token_id": "tokenizer",
        "bos_token_id": "tokenizer",
        "text_bos": "text_bos",
    }

    compared: ClassVar = DataConfig.compared | {
        "tokenizer": "tokenizer",
        **dict.fromkeys(("input_field", "target_field", "prefix", "decoder_start", "text_bos"), "prepares"),
        **dict.fromkeys(("input_len", "target_len", "too_long"), "prepares"),
    }

    source: Source = TableFiles()
    "where the pairs come from"
    input_field: str = "input"
    "the column with the input"
    target_field: str = "target"
    "the column with the target"
    prefix: str = ""
    'the text before each input, such as "translate English to German: "'
    tokenizer: TokenizerConfig = TokenizerConfig()
    "the tokenizer file, or the kind and size of one that is trained on the training texts"
    input_len: Count = 128
    target_len: Count = 128
    "tokens of each side, the end token and the start token of text_bos included"
    too_long: Literal["drop", "cut"] = "drop"
    "a pair with a longer side: drop leaves it out; cut removes tokens from the side's end"
    decoder_start: CountOrZero = 0
    "the token with which the decoder begins; it must equal model.decoder_start_token_id"
    text_bos: bool = False
    "whether the texts of both sides begin with the tokenizer's start token, as BART's do"

    def open(self, split: str) -> "PairRows":
        texts = self._texts()
        tokens, offsets, meta = text.open_tokens(text.encoded_folder(texts, split))
        log_skipped(split, meta["bad_records"])
        # The stream is `S input S target S input ... S`, and each text has the offset of the
        # separator before it.
        begins = offsets + 1
        # The length of a text includes the separator after it, which is its end token.
        lengths = np.diff(begins).reshape(-1, 2)
        fits = (lengths + self.text_bos <= (self.input_len, self.target_len)).all(axis=1)
        if not fits.all():
            log.warning("%s split: %d of %d pairs are longer than data.input_len = %d or data.target_len = %d: %s "
                        "(data.too_long)", split, (~fits).sum(), len(fits), self.input_len, self.target_len,
                        {"drop": "dropped", "cut": "cut"}[self.too_long])  # fmt: skip
        kept = np.flatnonzero(fits | (self.too_long == "cut"))
        if not len(kept):
            raise ValueError(
                f"data.input_len = {self.input_len}, data.target_len = {self.target_len}: every pair of the {split} "
                "split is longer; give more, or data.too_long = 'cut'"
            )
        token_bytes = np.load(text.tokenizer_folder(texts) / "token_bytes.npy")
        first = (self.open_tokenizer().start,) if self.text_bos else ()
        return PairRows(tokens, begins[:-1].reshape(-1, 2)[kept], lengths[kept], token_bytes, meta, self, first)

    def row(self) -> dict[str, Field]:
        return encoder_decoder_rows.row(self.input_len, self.target_len)

    def requirements(self) -> dict:
        tokenizer = self.open_tokenizer()
        return {
            "vocab_size": text.vocab_size(self._texts()),
            "max_seq_len": max(self.input_len, self.target_len),
            "decoder_start_token_id": self.decoder_start,
            "eos_token_id": tokenizer.separator,
            "text_bos": self.text_bos,
            **({"bos_token_id": tokenizer.start} if self.text_bos else {}),
        }

    def open_tokenizer(self) -> Tokenizer:
        return text.tokenizer(self._texts())

    def save_artifacts(self, folder: Path) -> None:
        text.save_tokenizer(self._texts(), folder / "tokenizer.json")

    def _texts(self) -> TextData:
        """Return a config whose documents are the inputs and targets of all pairs in turn."""
        sides = Sides(self.source, self.input_field, self.target_field, self.prefix)
        same = {name: getattr(self, name) for name in ("tokenizer", "cache_dir", "max_bad_records")}
        # `TextData` tokenizes and caches the texts, so pairs need no cache of their own.
        return TextData(source=sides, **same)


@dataclasses.dataclass(frozen=True)
class Sides(Source):
    """Each pair of a source as two records: the input and the target."""

    source: Source
    input_field: str
    "the column with the input"
    target_field: str
    "the column with the target"
    prefix: str
    "the text before each input"

    def short_name(self) -> str:
        return f"pairs-{self.source.short_name()}"

    def fingerprint(self, split, root):
        return cache.key(self.source.fingerprint(split, root), self.input_field, self.target_field, self.prefix)

    def shards(self, split, root, bad):
        return [dataclasses.replace(self, source=shard) for shard in self.source.shards(split, root, bad)]

    def records(self, split, root, bad) -> Iterator[tuple[str, dict[str, Any]]]:
        for where, record in self.source.records(split, root, bad):
            fields = (self.input_field, self.target_field)
            # Both sides are checked first, because inputs and targets must alternate in the stream.
            reason = next(filter(None, (_wrong(record, name) for name in fields)), "")
            if reason:
                bad.skip(where, reason)
            else:
                yield where, {"text": self.prefix + record[self.input_field]}
                yield where, {"text": record[self.target_field]}


def _wrong(record: dict[str, Any], name: str) -> str:
    if missing := lacks(record, name):
        return missing
    reason = documents.wrong(record[name])
    return f"field {name!r}: {reason}" if reason else ""


@dataclasses.dataclass(frozen=True)
class PairRows:
    """One split; begins, lengths (N, 2): the place of each pair's input and target, end tokens
    included.

    first: the tokens that stand before each text.
    """

    tokens: TokenStream
    begins: np.ndarray
    lengths: np.ndarray
    token_bytes: np.ndarray
    meta: dict
    cfg: TextPairData
    first: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.begins)

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        out = encoder_decoder_rows.empty(len(indices), self.cfg.input_len, self.cfg.target_len)
        for row, (source, target) in enumerate(self._sides(np.asarray(indices))):
            encoder_decoder_rows.fill(out, row, source, target, self.cfg.decoder_start)
        if noise is None and self.token_bytes.any():
            out["target_bytes"] = self.token_bytes[out["targets"]]
        return out

    def _sides(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield input and target of each pair. A side that is too long keeps its end token."""
        lengths = self.lengths[indices].ravel()
        ids = self.tokens[packing.ranges(self.begins[indices].ravel(), lengths)].astype(np.int32)
        texts = [np.append(self.first, side).astype(np.int32) for side in np.split(ids, np.cumsum(lengths)[:-1])]
        rooms = (self.cfg.input_len, self.cfg.target_len)
        for pair in zip(texts[::2], texts[1::2], strict=True):
            yield tuple(
                side if len(side) <= room else np.append(side[: room - 1], side[-1])
                for side, room in zip(pair, rooms, strict=True)
            )
