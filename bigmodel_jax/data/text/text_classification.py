"""Texts with one label each, as rows of words. The vocabulary comes from the training texts."""

import collections
import dataclasses
import functools
import json
import re
import zlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.core.ranges import Count, CountOrZero, ProperShare
from bigmodel_jax.data.base import BadRecords, DataConfig, lacks, log_skipped, log_truncated
from bigmodel_jax.data.fields import Field, per_row, per_token
from bigmodel_jax.data.holdout import check_fraction, held_out
from bigmodel_jax.data.sources.opened import opened
from bigmodel_jax.data.sources.source import Source
from bigmodel_jax.data.sources.sources import Files

PADDING, UNKNOWN = 0, 1
SPECIAL = ("<padding>", "<unknown>")
# Words such as don't and 1990s. Every other character but whitespace is a word by itself.
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class LabelledLines(Files):
    """UTF-8 files with one `text<TAB>label` per line."""

    test: str = ""
    "paths or glob patterns of the test files, comma-separated"

    def records(self, split, root, bad):
        for path in self.paths(split):
            with opened(path) as file:
                for number, line in enumerate(file, 1):
                    reason, record = _parse(line.rstrip(b"\r\n"))
                    if reason:
                        bad.skip(f"{path} line {number}", reason)
                    else:
                        yield f"{path} line {number}", record


@dataclasses.dataclass(frozen=True)
class TextClassificationData(DataConfig):
    """Labelled texts for classification: lower-case words, cut at `seq_len`, padded on the right.

    The source gives records {"text", "label"}. A label is a text or a number. A batch holds tokens
    and segment_ids (1, and 0 for padding) (B, T) int32, label (B,) int32 and weights (B,) float32.
    With `max_chars` it also holds ngrams (B, N) int32, 0 for padding. Labels are numbered in the
    order of their names. Vocabulary and labels come from the training rows. A source that names its
    classes gives the labels itself.
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

    required_by: ClassVar = {"vocab_size": "vocab_size", "ngram_buckets": "ngram_buckets"}
    RENAMED: ClassVar = {
        old: f"source.{old.removesuffix('_path')}" for old in ("train", "test", "train_path", "test_path")
    }

    compared: ClassVar = DataConfig.compared | {
        "seq_len": "shape",
        **dict.fromkeys(("label_field", "vocab_size", "min_chars", "max_chars", "ngram_buckets"), "prepares"),
    }
    cut: ClassVar = "validation_fraction"

    source: Source = LabelledLines(train="data/train.txt", test="data/test.txt")
    "where the records come from"
    label_field: str = "label"
    "the field with the label"
    evaluate_on: Literal["validation", "test"] = "validation"
    "the source's split that evaluations read"
    validation_fraction: ProperShare = 0.1
    """share of the training records held out by a hash of their content, if the source has no
    validation split"""
    vocab_size: Count = 20_000
    "size of the vocabulary: the most frequent words, padding and unknown"
    seq_len: Count = 64
    "words of a row"
    min_chars: CountOrZero = 3
    "the shortest character n-grams of words"
    max_chars: CountOrZero = 0
    "the longest character n-grams of words, whose ends are marked; 0: no n-grams"
    ngram_buckets: CountOrZero = 32_768
    "the n-grams are hashed into this many numbers; 0 is reserved for padding"

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
        tokens, numbers, long = encode(examples, words, labels, self.seq_len)
        log_truncated(split, long, len(examples), self.seq_len)
        return LabelledTexts(tokens, numbers, skipped, char_ngrams(examples, self) if self.max_chars else None)

    def examples(self, split: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Return ((text, label) of every usable record of a split, what was skipped)."""
        own = self._own_split(split)
        examples, skipped = read(self, own or "train", vocabulary(self)[1] if own and split != "train" else None)
        log_skipped(split, skipped)
        return (examples if own else self.of_split(examples, split)), skipped

    def reads(self) -> dict[str, list[Path] | str]:
        own = self._own_split("validation")
        more = {f"data.source.{own}": self.source.made_from(own, self.root())} if own else {}
        return super().reads() | more

    def row(self) -> dict[str, Field]:
        texts = (
            per_token(["tokens", "segment_ids"], self.seq_len) | per_row(["label"]) | per_row(["weights"], "float32")
        )
        return texts | ({"ngrams": Field(None, "int32")} if self.max_chars else {})

    def requirements(self) -> dict:
        words, labels = vocabulary(self)
        needs = {"vocab_size": len(words), "num_classes": len(labels)}
        return needs | ({"ngram_buckets": self.ngram_buckets} if self.max_chars else {})

    def label_column(self) -> str:
        return self.label_field

    def baselines(self) -> dict[str, float]:
        """Return the accuracy of always predicting the training split's most frequent label."""
        count = np.bincount(self.open("train").labels)
        return {"majority_accuracy": float(np.mean(self.open("validation").labels == count.argmax()))}

    def save_artifacts(self, folder: Path) -> None:
        """Write vocabulary.json: words and labels in the order of their numbers."""
        words, labels = vocabulary(self)
        text = json.dumps({"words": list(words), "labels": list(labels)}, ensure_ascii=False, indent=0)
        files.replace(folder / "vocabulary.json", text + "\n")

    def _own_split(self, split: str) -> str:
        """Return the source's split that is read for `split`; "" if `split` is cut from the
        training split."""
        found = self.evaluate_on if split == "validation" else split
        held_out_here = not self.source.has("validation", self.root()) and found != "test"
        return "" if held_out_here else found

    def of_split(self, examples: list[tuple[str, str]], split: str) -> list[tuple[str, str]]:
        """Return the records of the training split that belong to `split`."""
        if self.source.has("validation", self.root()):
            return examples
        sides = held_out(["\t".join(e).encode() for e in examples], self.validation_fraction)
        return [e for e, held in zip(examples, sides, strict=True) if held == (split == "validation")]


@dataclasses.dataclass(frozen=True)
class LabelledTexts:
    """One split: tokens (N, T), labels (N,) and, with n-grams, ngrams (N, M), all int32."""

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


def read(
    cfg: TextClassificationData, split: str, known: tuple[str, ...] | None = None
) -> tuple[list[tuple[str, str]], list]:
    """Return ((text, label) of every usable record of the source's split, what was skipped).

    A record whose label is not in `known` is unusable.
    """
    bad, examples, names = BadRecords(cfg.max_bad_records), [], cfg.source.labels()
    for where, record in cfg.source.records(split, cfg.root(), bad):
        reason, example = _example(record, cfg.label_field, names)
        if not reason and known is not None and example[1] not in known:
            reason = f"label {example[1]!r} is not among those of training: {', '.join(known[:10])}"
        if reason:
            bad.skip(where, reason)
        else:
            examples.append(example)
    if not examples:
        raise ValueError(f"data.source: the {split} split of {cfg.source} has no usable records")
    return examples, bad.skipped


def _parse(line: bytes) -> tuple[str, dict[str, str]]:
    """Return ("", the record), or (what is wrong, {})."""
    try:
        text, tab, label = line.decode("utf-8").rpartition("\t")
    except UnicodeDecodeError as error:
        return f"not UTF-8 ({error.reason} at byte {error.start})", {}
    return ("", {"text": text, "label": label}) if tab else ("no tab between text and label", {})


def _example(record: dict[str, Any], label_field: str, names: tuple[str, ...]) -> tuple[str, tuple[str, str]]:
    """Return ("", (text, label)), or (what is wrong, ("", "")).

    A number becomes the name of its class, where the source has names.
    """
    if missing := lacks(record, "text", label_field):
        return missing, ("", "")
    text, label = record["text"], record[label_field]
    if names and not isinstance(label, str):
        if label not in range(len(names)):
            return f"label {label!r} is not in 0 .. {len(names) - 1}", ("", "")
        label = names[label]
    for name, value in (("text", text), ("label", label)):
        if value is None or not str(value).strip():
            return f"empty {name}", ("", "")
    return ("", (text.strip(), str(label).strip())) if isinstance(text, str) else ("the text is no text", ("", ""))


# ---------------------------------------------------------------- words to numbers


def split_words(text: str) -> list[str]:
    """Return the lower-case words of a text."""
    return WORD.findall(text.lower())


def vocabulary(cfg: TextClassificationData) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (words, labels) in the order of their numbers, from the training rows alone."""
    # Words and labels do not depend on the evaluated split, so both splits share an entry.
    fitted = dataclasses.replace(cfg, evaluate_on="validation")
    return _vocabulary(fitted, cfg.source.fingerprint("train", cfg.root()))


@functools.lru_cache(maxsize=4)
def _vocabulary(cfg: TextClassificationData, _fingerprint: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    every, _ = read(cfg, "train")
    labels = cfg.source.labels() or sorted({label for _, label in every})
    if len(labels) < 2:
        raise ValueError(f"data.source: training has one label only, {labels[0]!r}; at least two are needed")
    count = collections.Counter(word for text, _ in cfg.of_split(every, "train") for word in split_words(text))
    # Words are sorted by count and then alphabetically, so the order of the records does not
    # matter.
    words = sorted(count, key=lambda word: (-count[word], word))[: cfg.vocab_size - len(SPECIAL)]
    return (*SPECIAL, *words), tuple(labels)


def encode(
    examples, words: tuple[str, ...], labels: tuple[str, ...], seq_len: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (tokens (N, seq_len) int32, labels (N,) int32, number of texts longer than a row)."""
    number = {word: i for i, word in enumerate(words)}
    tokens, long = np.full((len(examples), seq_len), PADDING, np.int32), 0
    for row, (text, _) in enumerate(examples):
        found = split_words(text)
        ids = [number.get(word, UNKNOWN) for word in found[:seq_len]]
        tokens[row, : len(ids)] = ids
        long += len(found) > seq_len
    return tokens, np.array([labels.index(label) for _, label in examples], np.int32), long


def char_ngrams(examples, cfg: TextClassificationData) -> np.ndarray:
    """Return the hashed n-grams of each text's first `seq_len` words, (N, M) int32.

    M is the most n-grams of any text. The source is Bojanowski et al., arXiv:1607.04606, section
    3.2.
    """
    of_word = functools.cache(functools.partial(word_ngrams, cfg=cfg))
    rows = [[n for word in split_words(text)[: cfg.seq_len] for n in of_word(word)] for text, _ in examples]
    out = np.full((len(rows), max(map(len, rows), default=0) or 1), PADDING, np.int32)
    for row, ids in enumerate(rows):
        out[row, : len(ids)] = ids
    return out


def word_ngrams(word: str, cfg: TextClassificationData) -> list[int]:
    """Return 1 .. ngram_buckets - 1 for each character n-gram of <word>."""
    marked = f"<{word}>"
    lengths = range(cfg.min_chars, cfg.max_chars + 1)
    runs = (marked[i : i + n] for n in lengths for i in range(len(marked) - n + 1))
    # crc32 gives the same number in every process, unlike Python's salted hash().
    return [1 + zlib.crc32(run.encode()) % (cfg.ngram_buckets - 1) for run in runs]
