"""Sentences with one label per word (named entities, parts of speech), for token classification.

Rows are for `MaskedLanguageModel` with a model whose head is "token_classification". A word's label
is predicted at the first of its tokens, and at no other (Devlin et al., arXiv:1810.04805, section
5.3).
"""

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.core.ranges import Count
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import BadRecords, DataConfig, lacks, log_skipped
from bigmodel_jax.data.columns import Column
from bigmodel_jax.data.fields import Field
from bigmodel_jax.data.sources.lines import opened_text
from bigmodel_jax.data.sources.source import Source
from bigmodel_jax.data.sources.sources import Files
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.text import packing
from bigmodel_jax.data.tokenizers import tokenizer_files
from bigmodel_jax.data.tokenizers.special_tokens import fingerprint
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

FORMAT = 1  # raise it when the cached files change


@dataclasses.dataclass(frozen=True)
class ConllFiles(Files):
    """Files in CoNLL-2003's format: one word per line, and a blank line after each sentence.

    The columns of a line are separated by spaces.
    """

    label_column: int = -1
    "the column with the label, from 0; -1: the last column. The word is the first column"

    def records(self, split, root, bad):
        for path in self.paths(split):
            for where, rows in _sentences(path):
                try:
                    yield where, {"words": [row[0] for row in rows], "labels": [row[self.label_column] for row in rows]}
                except IndexError:
                    bad.skip(where, f"a line has no column {self.label_column} (data.source.label_column)")


def _sentences(path: Path) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield (where, rows of columns) for each sentence of a file."""
    rows: list[list[str]] = []
    with opened_text(path) as file:
        for number, line in enumerate(file, 1):
            # CoNLL-2003 marks the beginning of a document by a line that is no word.
            if line.startswith("-DOCSTART-") or not line.strip():
                if rows:
                    yield f"{path} line {number - len(rows)}", rows
                rows = []
            else:
                rows.append(line.split())
    if rows:
        yield f"{path} last sentence", rows


@dataclasses.dataclass(frozen=True)
class TokenLabelData(DataConfig):
    """Sentences with labelled words.

    The source gives records {"words": [...], "labels": [...]} of equal length. Labels are numbered
    in the order of their names in the training split. A batch holds tokens, segment_ids, positions
    and targets (B, T) int32; weights (B, T) float32, 1 where a label is predicted. A sentence
    longer than a row is truncated.
    """

    required_by: ClassVar = {"vocab_size": "tokenizer_path", "max_seq_len": "seq_len"}

    compared: ClassVar = DataConfig.compared | {
        "tokenizer_path": "tokenizer",
        "seq_len": "shape",
        "words_field": "prepares",
        "labels_field": "prepares",
    }

    source: Source = TableFiles()
    "where the sentences come from"
    words_field: str = "words"
    "the field with the words"
    labels_field: str = "labels"
    "the field with the labels"
    tokenizer_path: str = ""
    "the encoder's tokenizer.json"
    seq_len: Count = 128
    "tokens of a row"

    def open(self, split: str) -> "LabelledRows":
        tokenizer, labels = self.open_tokenizer(), self.labels()
        # The labels of training number those of every split, so they are part of the key.
        facts = [self.source.fingerprint(split, self.root()), fingerprint(self.tokenizer_path), labels]
        name = f"{split}-{cache.key(facts, self.words_field, self.labels_field, self.seq_len, self.max_bad_records)}"
        folder = cache.build(
            self.root() / f"token-labels-{FORMAT}" / name, lambda out: self._write(split, tokenizer, labels, out)
        )
        meta = json.loads((folder / "meta.json").read_text())
        log_skipped(split, meta["bad_records"])
        return LabelledRows(np.load(folder / "tokens.npy", mmap_mode="r"), meta)

    def row(self) -> dict[str, Field]:
        return packing.row(self.seq_len)

    def requirements(self) -> dict:
        needs = {"vocab_size": self.open_tokenizer().vocab_size, "max_seq_len": self.seq_len}
        return needs | {"head": "token_classification", "num_classes": len(self.labels())}

    def open_tokenizer(self) -> Tokenizer:
        return tokenizer_files.of_encoder(self.tokenizer_path)

    def save_artifacts(self, folder: Path) -> None:
        self.open_tokenizer().save(folder / "tokenizer.json")
        text = json.dumps({"labels": self.labels()}, ensure_ascii=False, indent=0)
        files.replace(folder / "vocabulary.json", text + "\n")

    def labels(self) -> tuple[str, ...]:
        """Return the labels of the training split in the order of their names."""
        return _labels(self, self.source.fingerprint("train", self.root()))

    def sentences(self, split: str, bad: BadRecords) -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield (where, words, labels) of every usable record."""
        for where, record in self.source.records(split, self.root(), bad):
            words, labels = record.get(self.words_field), record.get(self.labels_field)
            reason = _wrong(record, self.words_field) or _wrong(record, self.labels_field)
            if not reason and len(words) != len(labels):
                reason = f"{len(words)} words, but {len(labels)} labels"
            if reason:
                bad.skip(where, reason)
            else:
                yield where, words, labels

    def _write(self, split: str, tokenizer: Tokenizer, labels: tuple[str, ...], out: Path) -> None:
        bad, cut = BadRecords(self.max_bad_records), 0
        number = {label: i for i, label in enumerate(labels)}
        with Column(out / "tokens.npy") as rows:
            for where, words, names in self.sentences(split, bad):
                if unknown := next((name for name in names if name not in number), None):
                    bad.skip(where, f"label {unknown!r} is not among those of training{nearest(unknown, labels)}")
                    continue
                part = _encode(tokenizer, words, self.seq_len)
                # The last word is missing where truncation has cut the sentence.
                cut += len(words) - 1 not in part.word_ids
                rows.append(_row(part, [number[name] for name in names], self.seq_len))
        if not rows.rows:
            raise ValueError(f"data.source: the {split} split of {self.source} has no sentences")
        meta = {"split": split, "sentences": rows.rows, "cut": cut, "bad_records": bad.skipped}
        (out / "meta.json").write_text(json.dumps(meta, indent=1))


@functools.lru_cache(maxsize=4)
def _labels(cfg: TokenLabelData, _fingerprint: str) -> tuple[str, ...]:
    found = {label for *_, labels in cfg.sentences("train", BadRecords(cfg.max_bad_records)) for label in labels}
    if len(found) < 2:
        raise ValueError(f"data.source: the training split has the labels {sorted(found)}; at least two are needed")
    return tuple(sorted(found))


def _wrong(record: dict[str, Any], name: str) -> str:
    if missing := lacks(record, name):
        return missing
    value = record[name]
    good = isinstance(value, list) and value and all(isinstance(item, str) and item for item in value)
    return "" if good else f"field {name!r} is not a list of texts"


def _encode(tokenizer: Tokenizer, words: list[str], length: int) -> Any:
    """Return an `Encoding` (package tokenizers) of a text that is already divided into words."""
    tokenizer.model.enable_truncation(length)
    found = tokenizer.model.encode(words, is_pretokenized=True)
    tokenizer.model.no_truncation()
    return found


def _row(part: Any, numbers: list[int], length: int) -> np.ndarray:
    """Return (4, T) int32: ids, attention mask, labels, and where a label is predicted."""
    out = np.zeros((4, length), np.int32)
    out[0, : len(part.ids)], out[1, : len(part.ids)] = part.ids, 1
    before = None
    for place, word in enumerate(part.word_ids):
        # Only the first token of a word carries its label.
        if word is not None and word != before:
            out[2, place], out[3, place] = numbers[word], 1
        before = word
    return out


@dataclasses.dataclass(frozen=True)
class LabelledRows:
    """One split; tokens (N, 4, T): ids, attention mask, labels, where a label is predicted."""

    tokens: np.ndarray
    meta: dict

    def __len__(self) -> int:
        return len(self.tokens)

    def counts(self) -> dict:
        return {
            "sentences": len(self),
            "too long, cut at the end": self.meta["cut"],
            "skipped records": len(self.meta["bad_records"]),
        }

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        ids, real, labels, asked = np.moveaxis(self.tokens[indices], 1, 0).copy()
        positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape).copy()
        texts = {"tokens": ids, "segment_ids": real, "positions": positions}
        return texts | {"targets": labels, "weights": asked.astype(np.float32)}
