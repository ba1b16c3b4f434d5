"""Preferences as rows of two texts: a prompt with its chosen and its rejected answer, or single answers with a label.

A row is (2, T): both texts begin with the prompt, and only targets that belong to an answer have weight.
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

FORMAT = 1

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PreferenceData(Templated, DataConfig):
    """Records of a prompt with a chosen and a rejected answer, one pair a row (data/text/preference_records.py: the forms)."""

    required_by: ClassVar = {"vocab_size": "tokenizer_path", "max_seq_len": "seq_len"}

    compared: ClassVar = DataConfig.compared | {
        "tokenizer_path": "tokenizer",
        "seq_len": "shape",
        **dict.fromkeys(("prompt_field", "chosen_field", "rejected_field", "template_path"), "prepares"),
        **dict.fromkeys(("too_long", "reasoning", "control_tokens"), "prepares"),
    }

    source: Source = TableFiles()
    prompt_field: str = "prompt"
    "where a record has no such column, what its answers both begin with is the prompt"
    chosen_field: str = "chosen"
    rejected_field: str = "rejected"
    tokenizer_path: str = ""
    "the model's tokenizer.json"
    template_path: str = ""
    "its chat_template.jinja, in which a text is a message; empty: texts as they are, with the token that ends a text behind"
    seq_len: Count = 1024
    "tokens of a text: prompt and answer"
    too_long: TooLong = "drop"
    "a pair with a text longer than seq_len: drop leaves it out; cut removes tokens at the prompt's front, the same from both "
    "texts, and at the end of an answer that is too long by itself"
    reasoning: Reasoning = "keep"
    "what a message carries of its reasoning: keep gives it to the template, strip takes it out"
    control_tokens: Literal["error", "escape"] = "error"
    "a text that spells a control token such as <|im_end|>: error makes it a bad record; escape reads it as text"

    def open(self, split: str) -> "PreferenceRows":
        self.check_files()
        facts = [
            self.source.fingerprint(split, self.root()),
            dataclasses.astuple(self._columns()),
            self.max_bad_records,
        ]
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
        """(N, 3): which segments are each row's prompt and its two answers."""
        return np.stack([stream.prompts[:-1:2], stream.prompts[:-1:2] + 1, stream.prompts[:-1:2] + 2], 1)

    def read(self, record: dict[str, Any]) -> Prompted:
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
        """Every usable record."""
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
    """Records of a prompt and one answer with a label, or pairs, whose answers are taken singly; one answer a row.

    The second text of a row is its prompt with an answer of the record before, which a loss such as KTO's needs.
    """

    compared: ClassVar = PreferenceData.compared | {"completion_field": "prepares", "label_field": "prepares"}

    completion_field: str = "completion"
    label_field: str = "label"

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
            raise ValueError("data.source: one record alone; an answer under another's prompt needs two at least")
        counts = np.diff(firsts, append=len(prompts))
        record = np.repeat(np.arange(len(firsts)), counts)
        nth = np.arange(len(prompts)) - firsts[record]
        own = prompts + 1 + nth
        before = record - 1  # the record before the first one is the last
        return np.stack([prompts, own, prompts[firsts[before]] + 1 + nth % counts[before]], 1)
