"""Texts with one label each, one `text<TAB>label` a line: rows of words, by a vocabulary fitted on the training texts."""

import collections
import dataclasses
import functools
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.core.ranges import Count, CountOrZero, ProperShare
from bigmodel_jax.data.base import BadRecords, DataConfig, log_skipped
from bigmodel_jax.data.fields import Field, per_row, per_token
from bigmodel_jax.data.holdout import check_fraction, held_out

PADDING, UNKNOWN = 0, 1
SPECIAL = ("<padding>", "<unknown>")
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")  # don't, 1990s; every other character but blanks by itself


@dataclasses.dataclass(frozen=True)
class TextClassificationData(DataConfig):
    """Lower-case words, cut at `seq_len`, padded on the right; and, where asked for, what characters they are made of.

    Batch: tokens and segment_ids (1, and 0 for padding) (B, T) int32, label (B,) int32, weights (B,) float32; with
    `max_chars` also ngrams (B, N) int32, 0 for padding. Labels are numbered in the order of their names; vocabulary and
    labels are those of the training rows.
    """

    levels = (
        Metric(
            "majority_accuracy",
            "Commonest label's share",
            form="{:.2%}",
            beside="accuracy",
            level=True,
            label="commonest",
        ),
    )

    RENAMED: ClassVar = {"train_path": "train", "test_path": "test"}

    train: str = "data/train.txt"
    test: str = "data/test.txt"
    evaluate_on: Literal["validation", "test"] = "validation"
    "what an evaluation reads: the rows of `train` that are held out, or `test`"
    validation_fraction: ProperShare = 0.1
    "share of the rows of `train` held out, chosen by their content"
    vocab_size: Count = 20_000
    "the commonest words, padding and unknown included"
    seq_len: Count = 64
    min_chars: CountOrZero = 3
    max_chars: CountOrZero = 0
    "of each word, its ends marked, the runs of min_chars to max_chars characters; 0: none"
    ngram_buckets: CountOrZero = 32_768
    "numbers that these runs share by their hash, 0 not among them"

    def __post_init__(self):
        check_fraction(self.validation_fraction)
        if self.max_chars and not 1 <= self.min_chars <= self.max_chars:
            raise ValueError(f"data.min_chars = {self.min_chars}; it must be 1 to data.max_chars = {self.max_chars}")
        for name, least in (("vocab_size", 3), ("seq_len", 1), ("max_chars", 0), ("ngram_buckets", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name} = {getattr(self, name)}; it must be {least} or more")

    def open(self, split: str) -> "LabelledTexts":
        words, labels = vocabulary(self)
        examples, skipped = self.examples(split)
        tokens, numbers = encode(examples, words, labels, self.seq_len)
        return LabelledTexts(tokens, numbers, skipped, char_ngrams(examples, self) if self.max_chars else None)

    def examples(self, split: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """((text, label) of every usable line of a split, what was skipped)."""
        path = self.test if self._from_test(split) else self.train
        known = vocabulary(self)[1] if self._from_test(split) else None
        examples, skipped = read(path, self.max_bad_records, known=known)
        log_skipped(split, skipped)
        return (examples if self._from_test(split) else self.of_split(examples, split)), skipped

    def reads(self) -> dict[str, list[Path] | str]:
        found = super().reads()
        return found if self.evaluate_on == "test" else {k: v for k, v in found.items() if k != "data.test"}

    def row(self) -> dict[str, Field]:
        texts = (
            per_token(["tokens", "segment_ids"], self.seq_len) | per_row(["label"]) | per_row(["weights"], "float32")
        )
        return texts | ({"ngrams": Field(None, "int32")} if self.max_chars else {})

    def requirements(self) -> dict:
        words, labels = vocabulary(self)
        needs = {"vocab_size": len(words), "num_classes": len(labels)}
        return needs | ({"ngram_buckets": self.ngram_buckets} if self.max_chars else {})

    def baselines(self) -> dict[str, float]:
        """The accuracy of always answering with the commonest label of training."""
        count = np.bincount(self.open("train").labels)
        return {"majority_accuracy": float(np.mean(self.open("validation").labels == count.argmax()))}

    def save_artifacts(self, folder: Path) -> None:
        """vocabulary.json: words and labels in the order of their numbers."""
        words, labels = vocabulary(self)
        text = json.dumps({"words": list(words), "labels": list(labels)}, ensure_ascii=False, indent=0)
        files.replace(folder / "vocabulary.json", text + "\n")

    def _from_test(self, split: str) -> bool:
        return split == "validation" and self.evaluate_on == "test"

    def of_split(self, examples: list[tuple[str, str]], split: str) -> list[tuple[str, str]]:
        sides = held_out(["\t".join(e).encode() for e in examples], self.validation_fraction)
        return [e for e, held in zip(examples, sides, strict=True) if held == (split == "validation")]


@dataclasses.dataclass(frozen=True)
class LabelledTexts:
    """One split. tokens (N, T), labels (N,) and, if any, the n-grams (N, M), int32."""

    tokens: np.ndarray
    labels: np.ndarray
    skipped: list[tuple[str, str]]
    ngrams: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        tokens = self.tokens[indices]
        segments = (tokens != PADDING).astype(np.int32)
        weights = np.ones(len(indices), np.float32)
        batch = {"tokens": tokens, "segment_ids": segments, "label": self.labels[indices], "weights": weights}
        return batch if self.ngrams is None else batch | {"ngrams": self.ngrams[indices]}


# ---------------------------------------------------------------- reading


def read(path: str, limit: int, known: tuple[str, ...] | None = None) -> tuple[list[tuple[str, str]], list]:
    """((text, label) of every usable line, what was skipped); `known`: the only labels that are usable."""
    if not Path(path).is_file():
        raise ValueError(f"data: no such file: {path} (data.train and data.test: one `text<TAB>label` a line)")
    bad, examples = BadRecords(limit), []
    for where, line in _lines(path):
        reason, example = _parse(line)
        if not reason and known is not None and example[1] not in known:
            reason = f"label {example[1]!r} is not among those of training: {', '.join(known[:10])}"
        if reason:
            bad.skip(where, reason)
        else:
            examples.append(example)
    if not examples:
        raise ValueError(f"data: {path} has no usable lines; each is `text<TAB>label`")
    return examples, bad.skipped


def _lines(path: str) -> Iterator[tuple[str, bytes]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            yield f"{path} line {number}", line.rstrip(b"\r\n")


def _parse(line: bytes) -> tuple[str, tuple[str, str]]:
    """("", (text, label)), or (what is wrong, ("", ""))."""
    try:
        text, tab, label = line.decode("utf-8").rpartition("\t")
    except UnicodeDecodeError as error:
        return f"not UTF-8 ({error.reason} at byte {error.start})", ("", "")
    if not tab:
        return "no tab between text and label", ("", "")
    for name, value in (("text", text), ("label", label)):
        if not value.strip():
            return f"empty {name}", ("", "")
    return "", (text.strip(), label.strip())


# ---------------------------------------------------------------- words to numbers


def split_words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def vocabulary(cfg: TextClassificationData) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(words, labels) in the order of their numbers, from the training rows alone."""
    stamp = Path(cfg.train).stat().st_mtime_ns if Path(cfg.train).is_file() else 0
    return _vocabulary(dataclasses.replace(cfg, test="", evaluate_on="validation"), stamp)


@functools.lru_cache(maxsize=4)
def _vocabulary(cfg: TextClassificationData, _modified: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    every, _ = read(cfg.train, cfg.max_bad_records)
    labels = sorted({label for _, label in every})
    if len(labels) < 2:
        raise ValueError(f"data.train: {cfg.train} has one label only, {labels[0]!r}; at least two are needed")
    count = collections.Counter(word for text, _ in cfg.of_split(every, "train") for word in split_words(text))
    # By count, then by the alphabet: the order of the lines plays no part.
    words = sorted(count, key=lambda word: (-count[word], word))[: cfg.vocab_size - len(SPECIAL)]
    return (*SPECIAL, *words), tuple(labels)


def encode(examples, words: tuple[str, ...], labels: tuple[str, ...], seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens (N, seq_len), labels (N,)), int32."""
    number = {word: i for i, word in enumerate(words)}
    tokens = np.full((len(examples), seq_len), PADDING, np.int32)
    for row, (text, _) in enumerate(examples):
        ids = [number.get(word, UNKNOWN) for word in split_words(text)[:seq_len]]
        tokens[row, : len(ids)] = ids
    return tokens, np.array([labels.index(label) for _, label in examples], np.int32)


def char_ngrams(examples, cfg: TextClassificationData) -> np.ndarray:
    """(N, M) int32: the hashed n-grams of each text's first `seq_len` words, as many columns as the longest has.

    Bojanowski et al., arXiv:1607.04606, section 3.2.
    """
    of_word = functools.cache(functools.partial(word_ngrams, cfg=cfg))
    rows = [[n for word in split_words(text)[: cfg.seq_len] for n in of_word(word)] for text, _ in examples]
    out = np.full((len(rows), max(map(len, rows), default=0) or 1), PADDING, np.int32)
    for row, ids in enumerate(rows):
        out[row, : len(ids)] = ids
    return out


def word_ngrams(word: str, cfg: TextClassificationData) -> list[int]:
    """1 .. ngram_buckets - 1 for each run of characters of <word>."""
    marked = f"<{word}>"
    lengths = range(cfg.min_chars, cfg.max_chars + 1)
    runs = (marked[i : i + n] for n in lengths for i in range(len(marked) - n + 1))
    return [1 + zlib.crc32(run.encode()) % (cfg.ngram_buckets - 1) for run in runs]
