"""Conversations for fine-tuning: rendered by the chat template, with loss on assistant turns alone.

The stream of a split is `c1 e c2 e ... cn e`: the tokens of each sample c, followed by an end token
e. The model reads c, exactly as the template gives it, and predicts the next token. The token e has
weight only where the template writes no end of the assistant's last turn.

Without a template a sample is the start token, a prompt and its completion. The loss covers the
completion and e.
"""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from bigmodel_jax.core.ranges import Count
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import BadRecords, DataConfig, log_skipped
from bigmodel_jax.data.columns import Column
from bigmodel_jax.data.fields import Field
from bigmodel_jax.data.sources.source import Source
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.text import chat, chat_records, packing
from bigmodel_jax.data.text.chat_records import Columns, Form, Reasoning
from bigmodel_jax.data.text.packing import Packing
from bigmodel_jax.data.text.templated import Templated
from bigmodel_jax.data.tokenizers.special_tokens import fingerprint
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, load_tokenizer

FORMAT = 4  # raise it when the cached files change
TooLong = Literal["drop", "cut"]
ControlTokens = Literal["error", "escape"]
TrainOn = Literal["all_turns", "last_turn"]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ChatData(Templated, DataConfig):
    """Records of one conversation each: messages, ShareGPT's conversations, or prompt and
    completion.

    If prompt and completion are texts, they become a user's and an assistant's message. Without a
    template they are joined into one text.
    """

    required_by: ClassVar = {"vocab_size": "tokenizer_path", "max_seq_len": "seq_len"}
    RENAMED: ClassVar = {
        old: f"source.{old.removesuffix('_path')}" for old in ("train", "validation", "train_path", "validation_path")
    }

    compared: ClassVar = DataConfig.compared | {
        "tokenizer_path": "tokenizer",
        "seq_len": "shape",
        "packing": "training",
        **dict.fromkeys(("form", "messages_field", "prompt_field", "completion_field", "tools_field"), "prepares"),
        **dict.fromkeys(("train_on", "reasoning", "template_path", "too_long", "control_tokens"), "prepares"),
    }
    source: Source = TableFiles()
    "where the records come from"
    form: Literal["auto", Form] = "auto"
    """auto: detected from the columns of a split's first record; a record of another form is a bad
    record"""
    messages_field: str = "messages"
    "the column with the list of messages; without it, the column 'conversations' is read"
    prompt_field: str = "prompt"
    "the column with the prompt"
    completion_field: str = "completion"
    "the column with the completion"
    tools_field: str = "tools"
    "the column with JSON schemas of tools for the template: a list, or its text"
    train_on: TrainOn = "all_turns"
    "all_turns: train on every assistant turn; last_turn: only on the last"
    reasoning: Reasoning = "keep"
    """keep passes reasoning to the template, which decides; strip removes reasoning_content and
    <think>...</think>"""
    tokenizer_path: str = ""
    "the model's tokenizer.json"
    template_path: str = ""
    "the model's chat_template.jinja; empty: prompt and completion are plain text"
    seq_len: Count = 1024
    "tokens of a row"
    packing: Packing = "first_fit"
    """first_fit, best_fit: several conversations per row; none: one; concat is refused, as it cuts
    conversations apart"""
    too_long: TooLong = "drop"
    """a conversation longer than seq_len: drop leaves it out; cut removes tokens at its front,
    never of its last answer"""
    control_tokens: ControlTokens = "error"
    """a control token such as <|im_end|> in a message: error makes a bad record; escape reads it as
    plain text"""

    def open(self, split: str) -> "ChatRows":
        self._check()
        facts = [self.source.fingerprint(split, self.root()), self.form, self.max_bad_records]
        facts += [fingerprint(self.tokenizer_path), self.template(), dataclasses.astuple(self._columns())]
        facts += [self.control_tokens, self.train_on, self.reasoning]
        folder = cache.build(self.root() / f"chat-{FORMAT}" / cache.key(facts), lambda out: self._write(split, out))
        meta = json.loads((folder / "meta.json").read_text())
        log_skipped(split, meta["bad_records"])
        log.info("%s split: records of the form %s", split, meta["form"])
        # mmap_mode "c" copies only the pages that `fit` writes to. All others are read from the
        # file.
        stream = Stream(*(np.load(folder / f"{name}.npy", mmap_mode="c") for name in Stream._fields))
        starts, lengths, counts = fit(stream, self.seq_len, self.too_long, meta["start"])
        for how, count in counts.items():
            if count:
                log.warning("%s split: %d of %d samples are longer than data.seq_len = %d: %s (data.too_long)",
                            split, count, len(stream.offsets) - 1, self.seq_len, how)  # fmt: skip
        if not len(starts):
            raise ValueError(
                f"data.seq_len = {self.seq_len}: every conversation of the {split} split is longer; give more"
                + (", or data.too_long = 'cut'" if self.too_long == "drop" else "")
            )
        plan = packing.pack(self.packing, starts, lengths, self.seq_len)
        return ChatRows(stream, plan, self.seq_len, meta | counts)

    def _check(self) -> None:
        self.check_files()
        if self.packing == "concat":
            raise ValueError(
                "data.packing = 'concat': it cuts conversations at row ends, and answers off their questions; "
                "allowed: 'first_fit', 'best_fit', 'none'"
            )

    def _columns(self) -> Columns:
        return Columns(
            messages=self.messages_field,
            prompt=self.prompt_field,
            completion=self.completion_field,
            tools=self.tools_field,
        )

    def row(self) -> dict[str, Field]:
        return packing.row(self.seq_len)

    def _write(self, split: str, out: Path) -> None:
        tokenizer = load_tokenizer(self.tokenizer_path)
        template = self.checked_template(tokenizer)
        bad, conversations, sizes, form = BadRecords(self.max_bad_records), 0, [0], self.form
        with Column(out / "tokens.npy", np.int32) as tokens, Column(out / "mask.npy", np.float32) as asked:
            for where, record in self.source.records(split, self.root(), bad):
                if form == "auto":
                    # If a bad record has no form, the form stays undecided, and the next record
                    # decides.
                    form = chat_records.form_of(record, self._columns()) or "auto"
                try:
                    found = self._samples(record, form, template, tokenizer)
                except ValueError as error:
                    bad.skip(where, str(error))
                    continue
                conversations += 1
                for ids, mask in (_with_end(sample, tokenizer) for sample in found):
                    tokens.extend(ids)
                    asked.extend(mask)
                    sizes.append(len(ids))
        if not tokens.rows:
            raise ValueError(f"data.source: the {split} split has no conversation in which an assistant speaks")
        np.save(out / "offsets.npy", np.cumsum(sizes))
        meta = {"conversations": conversations, "form": form, "bad_records": bad.skipped, "start": tokenizer.start}
        (out / "meta.json").write_text(json.dumps(meta))

    def _samples(self, record: dict[str, Any], form: str, template: str, tokenizer: Tokenizer) -> list[chat.Sample]:
        """Return the samples of a record. Raises ValueError with the reason for an unusable one."""
        talk = chat_records.read(record, form, self._columns())
        escape = self.control_tokens == "escape"
        if not self.template_path:
            if not chat_records.is_text(record, self._columns()):
                raise ValueError("messages need a chat template, and data.template_path is empty")
            before, answer = (message["content"] for message in talk.messages)
            return [chat.plain(before, answer, tokenizer, escape=escape)]
        messages = chat_records.for_template(talk.messages, self.reasoning, template, talk.tools)
        last = self.train_on == "last_turn"
        return chat.samples(template, messages, tokenizer, tools=talk.tools, first=talk.first, escape=escape, last=last)


def _with_end(sample: chat.Sample, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return a sample and its end token.

    The end token has weight where the assistant's last turn has no stop token of its own.
    """
    ids, mask = sample
    last = ids[len(mask) - np.argmin(np.append(mask[::-1], 0.0)) :]  # the assistant's tokens at the end of the sample
    # A sample without assistant tokens is a prompt with an empty completion.
    open_end = (len(last) > 0 or not mask.any()) and not np.isin(last, tokenizer.stops).any()
    return np.append(ids, np.int32(tokenizer.stops[0])), np.append(mask, np.float32(open_end))


class Stream(NamedTuple):
    """tokens, mask: all samples with their end tokens; offsets (samples + 1,): their starts."""

    tokens: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray


def fit(stream: Stream, seq_len: int, too_long: TooLong, bos: int) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Return (starts, lengths, how many samples were dropped or cut) of the samples that fit a row.

    Cutting writes into `stream`: the start token (bos) is moved to the cut. An answer that is cut,
    or whose whole question is cut, gets mask 0. A sample without anything left to train on is
    dropped.
    """
    # A sample's end token is only a target, so it needs no room in a row.
    starts, lengths = stream.offsets[:-1].copy(), np.diff(stream.offsets) - 1
    counts = {"dropped": 0, "cut": 0}
    keep = np.ones(len(starts), bool)
    for i in np.flatnonzero(lengths > seq_len):
        end = starts[i] + lengths[i]
        begin = end - seq_len
        front = int(stream.tokens[starts[i]] == bos)
        asked = stream.mask[begin + front : end + 1]
        # The cut may begin inside an answer. The rest of that answer has lost its beginning, so it
        # is not trained on.
        if too_long == "cut" and asked[np.argmin(asked) :].any() and not asked.all():
            asked[: np.argmin(asked)] = 0.0
            stream.mask[begin : begin + front] = 0.0
            if front:
                stream.tokens[begin] = bos
            starts[i], lengths[i] = begin, seq_len
            counts["cut"] += 1
        else:
            keep[i] = False
            counts["dropped"] += 1
    return starts[keep], lengths[keep], counts


@dataclasses.dataclass(frozen=True)
class ChatRows:
    """The rows of one split. `meta` holds counts and names."""

    shown_as: ClassVar = "chat"

    stream: Stream
    plan: packing.Plan
    seq_len: int
    meta: dict

    def __len__(self) -> int:
        return self.plan.num_rows

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        """Return a batch as for plain text. Only targets of the assistant have weight 1."""
        tokens, mask, offsets = self.stream
        out = packing.collate(tokens, self.plan, indices, self.seq_len, offsets)
        # The mask is collated like the tokens. Its "targets" say whether each target is trained on.
        flags = packing.collate(mask.astype(np.int32), self.plan, indices, self.seq_len, offsets)["targets"]
        return out | {"weights": out["weights"] * flags.astype(np.float32)}

    def sample(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of a sample, and whether each is trained on.

        The end token is included where it is trained on.
        """
        begin, end = self.stream.offsets[number : number + 2]
        end -= not self.stream.mask[end - 1]
        return self.stream.tokens[begin:end], self.stream.mask[begin:end] > 0

    def counts(self) -> dict:
        fed = int(self.plan.lengths.sum())
        return {
            "form": self.meta["form"],
            "conversations": self.meta["conversations"],
            "samples": len(self.stream.offsets) - 1,
            "trained tokens": int(self.stream.mask[packing.ranges(self.plan.starts + 1, self.plan.lengths)].sum()),
            "too long, dropped": self.meta["dropped"],
            "too long, cut at the front": self.meta["cut"],
            "tokens": fed,
            f"rows of {self.seq_len} tokens": len(self),
            "padding, % of row cells": 100 * (1 - fed / (len(self) * self.seq_len)),
            "skipped records": len(self.meta["bad_records"]),
        }
