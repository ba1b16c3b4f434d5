"""Preferences as rows of two texts: a prompt with two answers, or single answers with a label.

A row is (2, T): both texts begin with the prompt, and only targets inside an answer have weight.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from bigmodel_jax.core.ranges import Count
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import BadRecords, DataConfig, log_skipped
from bigmodel_jax.data.columns import Column
from bigmodel_jax.data.fields import Field, per_row
from bigmodel_jax.data.sources.source import Source
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.text import packing, preference_records
from bigmodel_jax.data.text.chat_records import Reasoning
from bigmodel_jax.data.text.preference_records import Columns, Encoded, Prompted
from bigmodel_jax.data.text.preference_rows import PreferenceRows, Stream, TooLong, fit
from bigmodel_jax.data.text.templated import Templated
from bigmodel_jax.data.tokenizers.special_tokens import fingerprint
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, load_tokenizer

FORMAT = 2  # raise it when the cached files change

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PreferenceData(Templated, DataConfig):
    """Records of a prompt with a chosen and a rejected answer. A row is one pair.

    data/text/preference_records.py lists the forms of records.
    """

    required_by: ClassVar = {"vocab_size": "tokenizer_path", "max_seq_len": "seq_len"}

    compared: ClassVar = DataConfig.compared | {
        "tokenizer_path": "tokenizer",
        "seq_len": "shape",
        **dict.fromkeys(("prompt_field", "chosen_field", "rejected_field", "template_path"), "prepares"),
        **dict.fromkeys(("too_long", "reasoning", "control_tokens"), "prepares"),
    }

    source: Source = TableFiles()
    "where the records come from"
    prompt_field: str = "prompt"
    "the column with the prompt; without it, the common beginning of both answers is the prompt"
    chosen_field: str = "chosen"
    "the column with the preferred answer"
    rejected_field: str = "rejected"
    "the column with the other answer"
    tokenizer_path: str = ""
    "the model's tokenizer.json"
    template_path: str = ""
    "the model's chat_template.jinja; empty: texts as they are, followed by the end token"
    seq_len: Count = 1024
    "tokens of a text: prompt and answer"
    too_long: TooLong = "drop"
    """a pair with a text longer than seq_len: drop leaves it out; cut shortens the prompt at its
    front, the same in both texts, and then an answer at its end if it is too long by itself"""
    reasoning: Reasoning = "keep"
    "keep passes a message's reasoning to the template; strip removes it"
    control_tokens: Literal["error", "escape"] = "error"
    """a control token such as <|im_end|> in a text: error makes a bad record; escape reads it as
    plain text"""

    def open(self, split: str) -> "PreferenceRows":
        self.check_files()
        facts = [
            self.source.fingerprint(split, self.root()),
            dataclasses.astuple(self._columns()),
            self.max_bad_records,
        ]
        # The class is part of the key, because both classes may read one source in different ways.
        facts += [fingerprint(self.tokenizer_path), self.control_tokens, self.reasoning, type(self).__name__]
        facts += [cache.file_digest(self.template_path) if self.template_path else ""]
        folder = cache.build(
            self.root() / f"preference-{FORMAT}" / cache.key(facts), lambda out: self._write(split, out)
        )
        meta = json.loads((folder / "meta.json").read_text())
        log_skipped(split, meta["bad_records"])
        stream = Stream(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in Stream._fields))
        cuts, counts = fit(stream, self.rows_of(stream), self.seq_len, self.too_long)
        for how, count in counts.items():
            if count:
                log.warning("%s split: %d of %d rows are longer than data.seq_len = %d: %s (data.too_long)",
                            split, count, meta["rows"], self.seq_len, how)  # fmt: skip
        if not len(cuts.rows):
            raise ValueError(
                f"data.seq_len = {self.seq_len}: every text of the {split} split is longer; give more"
                + (", or data.too_long = 'cut'" if self.too_long == "drop" else "")
            )
        return PreferenceRows(stream, cuts, self.seq_len, meta | counts, self.labelled)

    labelled: ClassVar[bool] = False

    def _columns(self) -> Columns:
        return Columns(self.prompt_field, self.chosen_field, self.rejected_field)

    def row(self) -> dict[str, Field]:
        texts = {name: Field((2, self.seq_len), "int32", (None, "seq")) for name in packing.TOKENS}
        return texts | {"weights": Field((2, self.seq_len), "float32", (None, "seq"))}

    def rows_of(self, stream: "Stream") -> np.ndarray:
        """Return (N, 3): the segments of each row's prompt and of its two answers."""
        # A record has three consecutive segments: the prompt, the chosen and the rejected answer.
        return np.stack([stream.prompts[:-1:2], stream.prompts[:-1:2] + 1, stream.prompts[:-1:2] + 2], 1)

    def read(self, record: dict[str, Any]) -> Prompted:
        """Return the prompt and answers of a record. Raises ValueError for an unusable one."""
        return preference_records.read_pair(record, self._columns())

    def _write(self, split: str, out: Path) -> None:
        tokenizer = load_tokenizer(self.tokenizer_path)
        template = self.checked_template(tokenizer)
        bad = BadRecords(self.max_bad_records)
        sizes, prompts, labels = [0], [], []
        with Column(out / "tokens.npy", np.int32) as tokens:
            for found, encoded in self._encoded(split, bad, tokenizer, template):
                prompts += [len(sizes) - 1] * len(encoded.answers)
                labels += found.wanted
                for ids in (encoded.prompt, *encoded.answers):
                    tokens.extend(ids)
                    sizes.append(len(ids))
        if not labels:
            raise ValueError(f"data.source: the {split} split has no usable record")
        np.save(out / "offsets.npy", np.cumsum(sizes))
        np.save(out / "prompts.npy", np.array([*prompts, len(sizes) - 1]))
        np.save(out / "labels.npy", np.array(labels, np.int32))
        rows = len(labels) if self.labelled else len(labels) // 2
        meta = {"rows": rows, "bad_records": bad.skipped, "start": tokenizer.start}
        (out / "meta.json").write_text(json.dumps(meta))

    def _encoded(
        self, split: str, bad: BadRecords, tokenizer: Tokenizer, template: str
    ) -> Iterator[tuple[Prompted, Encoded]]:
        """Yield every usable record, read and tokenized."""
        for where, record in self.source.records(split, self.root(), bad):
            try:
                found = self.read(record)
                encoded = preference_records.encode(
                    found, tokenizer, template, escape=self.control_tokens == "escape", reasoning=self.reasoning
                )
            except ValueError as error:
                bad.skip(where, str(error))
                continue
            yield found, encoded


@dataclasses.dataclass(frozen=True)
class UnpairedPreferenceData(PreferenceData):
    """Records of a prompt and one labelled answer. A row is one answer, so a pair becomes two rows.

    The second text of a row is the same prompt with an answer of the previous record, which losses
    such as KTO's need.
    """

    compared: ClassVar = PreferenceData.compared | {"completion_field": "prepares", "label_field": "prepares"}

    completion_field: str = "completion"
    "the column with the answer"
    label_field: str = "label"
    "the column that says whether the answer is wanted"

    labelled: ClassVar[bool] = True

    def _columns(self) -> Columns:
        return Columns(
            self.prompt_field, self.chosen_field, self.rejected_field, self.completion_field, self.label_field
        )

    def row(self) -> dict[str, Field]:
        return super().row() | per_row(["label"])

    def read(self, record: dict[str, Any]) -> Prompted:
        return preference_records.read_answers(record, self._columns())

    def rows_of(self, stream: "Stream") -> np.ndarray:
        prompts = stream.prompts[:-1]
        firsts = np.flatnonzero(np.diff(prompts, prepend=-1))  # the first row of each record
        if len(firsts) < 2:
            raise ValueError(
                "data.source: there is only one record; a row needs an answer of another record, so give two or more"
            )
        counts = np.diff(firsts, append=len(prompts))
        record = np.repeat(np.arange(len(firsts)), counts)
        nth = np.arange(len(prompts)) - firsts[record]
        own = prompts + 1 + nth
        before = record - 1  # index -1: the last record stands before the first
        # nth % counts spreads the rows of a record over the answers of the record before it.
        return np.stack([prompts, own, prompts[firsts[before]] + 1 + nth % counts[before]], 1)
