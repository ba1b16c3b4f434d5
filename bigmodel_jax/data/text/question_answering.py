"""Questions whose answer is a span of a text, prepared as BERT prepares SQuAD.

A row is `[CLS] question [SEP] part of the context [SEP]`, as the encoder's tokenizer encodes a
pair. A context that is longer than a row is read in overlapping parts (Devlin et al.,
arXiv:1810.04805; doc_stride in run_squad.py). Where a part does not hold the whole answer, the
answer is the row's first token.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bigmodel_jax.core.ranges import Count, CountOrZero
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import BadRecords, DataConfig, lacks, log_skipped
from bigmodel_jax.data.columns import Column
from bigmodel_jax.data.fields import Field, per_row, per_token
from bigmodel_jax.data.sources.opened import opened
from bigmodel_jax.data.sources.source import Source
from bigmodel_jax.data.sources.sources import Files
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.tokenizers import tokenizer_files
from bigmodel_jax.data.tokenizers.special_tokens import fingerprint
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

FORMAT = 1  # raise it when the cached files change
FIELDS = ("question", "context", "answers")


class Example(NamedTuple):
    """A question, its context, and its answer.

    `answer` is (first character, character after the last) in the context; None where the context
    holds no answer.
    """

    question: str
    context: str
    answer: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class SquadFiles(Files):
    """SQuAD's JSON, 1.1 and 2.0: {"data": [{"paragraphs": [{"context", "qas": [...]}]}]}."""

    def records(self, split, root, bad):
        for path in self.paths(split):
            with opened(path) as file:
                content = file.read()
            try:
                articles = json.loads(content)["data"]
                found = [(c["context"], qa) for a in articles for c in a["paragraphs"] for qa in c["qas"]]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(f"data.source.{split}: {path} is not SQuAD's JSON ({error!r})") from None
            for number, (context, qa) in enumerate(found, 1):
                yield f"{path} question {number}", {"context": context} | dict(qa)


@dataclasses.dataclass(frozen=True)
class QuestionAnsweringData(DataConfig):
    """Questions with contexts and answers, for extractive question answering.

    The source gives records {"question", "context", "answers"}. The answers are a list of {"text",
    "answer_start"} as in SQuAD, or two lists as on the Hugging Face Hub. Training reads the first
    answer. Without any, the context does not answer the question. A batch holds tokens,
    token_types, segment_ids and positions (B, T) int32; start and end (B,) int32, the answer's
    first and last token; weights (B,) float32.
    """

    required_by: ClassVar = {"vocab_size": "tokenizer_path", "max_seq_len": "seq_len"}

    compared: ClassVar = DataConfig.compared | {
        "tokenizer_path": "tokenizer",
        "seq_len": "shape",
        "overlap": "prepares",
    }

    source: Source = TableFiles()
    "where the records come from"
    tokenizer_path: str = ""
    "the encoder's tokenizer.json"
    seq_len: Count = 384
    "tokens of a row"
    overlap: CountOrZero = 128
    "tokens that two neighbouring parts of a context share"

    def open(self, split: str) -> "AnswerRows":
        tokenizer = self.open_tokenizer()
        facts = [self.source.fingerprint(split, self.root()), fingerprint(self.tokenizer_path)]
        name = f"{split}-{cache.key(facts, self.seq_len, self.overlap, self.max_bad_records)}"
        folder = cache.build(self.root() / f"answers-{FORMAT}" / name, lambda out: self._write(split, tokenizer, out))
        meta = json.loads((folder / "meta.json").read_text())
        log_skipped(split, meta["bad_records"])
        return AnswerRows(np.load(folder / "tokens.npy", mmap_mode="r"), np.load(folder / "places.npy"), meta)

    def row(self) -> dict[str, Field]:
        read = per_token(["tokens", "token_types", "segment_ids", "positions"], self.seq_len)
        return read | per_row(["start", "end"]) | per_row(["weights"], "float32")

    def requirements(self) -> dict:
        needs = {"vocab_size": self.open_tokenizer().vocab_size, "max_seq_len": self.seq_len}
        return needs | {"head": "question_answering"}

    def open_tokenizer(self) -> Tokenizer:
        if self.overlap >= self.seq_len:
            raise ValueError(f"data.overlap = {self.overlap}; it must be below data.seq_len = {self.seq_len}")
        return tokenizer_files.of_encoder(self.tokenizer_path)

    def save_artifacts(self, folder: Path) -> None:
        self.open_tokenizer().save(folder / "tokenizer.json")

    def _write(self, split: str, tokenizer: Tokenizer, out: Path) -> None:
        bad, questions = BadRecords(self.max_bad_records), 0
        with Column(out / "tokens.npy") as tokens, Column(out / "places.npy", np.int32) as places:
            for where, example in self._examples(split, bad):
                try:
                    parts = parts_of(tokenizer, example, self.seq_len, self.overlap)
                except ValueError as error:
                    bad.skip(where, f"{error} (data.seq_len, data.overlap)")
                    continue
                questions += 1
                for part in parts:
                    tokens.append(_padded([part.ids, part.type_ids, part.attention_mask], self.seq_len))
                    places.append(place(part, example.answer))
        if not questions:
            raise ValueError(f"data.source: the {split} split of {self.source} has no questions")
        meta = {"split": split, "questions": questions, "rows": tokens.rows, "bad_records": bad.skipped}
        (out / "meta.json").write_text(json.dumps(meta, indent=1))

    def _examples(self, split: str, bad: BadRecords) -> Iterator[tuple[str, Example]]:
        for where, record in self.source.records(split, self.root(), bad):
            try:
                yield where, example(record)
            except ValueError as error:
                bad.skip(where, str(error))


def example(record: dict[str, Any]) -> Example:
    """Read a record. Raises ValueError for a missing field, or an answer at another place."""
    if missing := lacks(record, *FIELDS):
        raise ValueError(missing)
    question, context = record["question"], record["context"]
    for name, value in (("question", question), ("context", context)):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"field {name!r} is not a text, or empty")
    answers = record["answers"]
    try:
        if isinstance(answers, dict):
            answers = [
                {"text": t, "answer_start": s} for t, s in zip(*map(answers.get, ("text", "answer_start")), strict=True)
            ]
        if not answers:
            return Example(question, context, None)
        text, start = answers[0]["text"], answers[0]["answer_start"]
        # A start that is off by a character would otherwise train on a wrong span.
        right = isinstance(start, int) and start >= 0 and text and context[start : start + len(text)] == text
    except (TypeError, KeyError, ValueError, AttributeError, IndexError):
        raise ValueError("field 'answers': not a list of {'text', 'answer_start'}") from None
    if not right:
        raise ValueError(f"field 'answers': {str(text)[:40]!r} does not stand at character {start} of the context")
    return Example(question, context, (start, start + len(text)))


def parts_of(tokenizer: Tokenizer, example: Example, length: int, overlap: int) -> list[Any]:
    """Return one `Encoding` (package tokenizers) per part of the context, with the whole question.

    Each has at most `length` tokens. Raises ValueError where the question leaves no room.
    """
    model = tokenizer.model
    room = length - len(tokenizer.encode(example.question)) - model.num_special_tokens_to_add(is_pair=True)
    if room <= overlap:  # the package would crash
        raise ValueError(f"{room} of {length} tokens are left for a part of the text; more than {overlap} are needed")
    model.enable_truncation(length, stride=overlap, strategy="only_second")
    # The result is the question and the first part of the text. Its `overflowing` holds the other
    # parts, each with the question in front.
    found = model.encode(example.question, example.context)
    # The setting would also truncate the next question, when its length is counted.
    model.no_truncation()
    return [found, *found.overflowing]


def place(part: Any, answer: tuple[int, int] | None) -> tuple[int, int]:
    """Return (first token, last token) of the answer in a part of the context.

    (0, 0) where the part does not hold all of it.
    """
    if answer is None:
        return 0, 0
    # Offsets count the characters of each text separately, so the question's tokens are left out.
    context = [i for i, which in enumerate(part.sequence_ids) if which == 1]
    inside = [i for i in context if part.offsets[i][0] < answer[1] and part.offsets[i][1] > answer[0]]
    # The first and last token must cover the whole answer; otherwise it crosses the part's edge.
    whole = inside and part.offsets[inside[0]][0] <= answer[0] and part.offsets[inside[-1]][1] >= answer[1]
    return (inside[0], inside[-1]) if whole else (0, 0)


def _padded(columns: list[list[int]], length: int) -> np.ndarray:
    """Return (3, length) int32: ids, token types and attention mask, padded on the right with 0."""
    out = np.zeros((3, length), np.int32)
    for row, values in zip(out, columns, strict=True):
        row[: len(values)] = values
    return out


@dataclasses.dataclass(frozen=True)
class AnswerRows:
    """The rows of one split.

    - tokens (N, 3, T): ids, token types, attention mask.
    - places (N, 2): first and last token of the answer.
    - meta: counts and bad records.
    """

    tokens: np.ndarray
    places: np.ndarray
    meta: dict

    def __len__(self) -> int:
        return len(self.places)

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        rows = self.tokens[indices]
        # A batch owns its arrays, and a broadcast is only a read-only view.
        positions = np.broadcast_to(np.arange(rows.shape[2], dtype=np.int32), (len(rows), rows.shape[2])).copy()
        per_token = {"tokens": rows[:, 0], "token_types": rows[:, 1], "segment_ids": rows[:, 2], "positions": positions}
        start, end = self.places[indices].T.copy()
        return per_token | {"start": start, "end": end, "weights": np.ones(len(rows), np.float32)}
