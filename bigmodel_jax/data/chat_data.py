"""Conversations for fine-tuning: rendered in the model's chat template, loss on the assistant's turns alone."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.core.ranges import Count
from bigmodel_jax.data import cache, chat, packing
from bigmodel_jax.data.base import BadRecords, DataConfig, log_skipped
from bigmodel_jax.data.packing import Packing
from bigmodel_jax.data.tokenizers import Tokenizer, load_tokenizer

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class ChatData(DataConfig):
    """JSONL files, one conversation a line: {"messages": [{"role": ..., "content": ...}, ...]}."""

    train_path: str = ""
    validation_path: str = ""
    tokenizer_path: str = ""
    "the model's tokenizer.json"
    template_path: str = ""
    "its chat_template.jinja"
    seq_len: Count = 1024
    packing: Packing = "first_fit"
    "first_fit: whole conversations packed; none: one a row; concat: cut at row ends"

    def open(self, split: str) -> "ChatRows":
        path = {"train": self.train_path, "validation": self.validation_path}[split]
        for name in ("tokenizer_path", "template_path"):
            if not Path(getattr(self, name)).is_file():
                raise ValueError(f"data.{name} = {getattr(self, name)!r}: no such file")
        if not Path(path).is_file():
            raise ValueError(f"data.{split}_path = {path!r}: no such file")
        digests = [cache.file_digest(p) for p in (path, self.tokenizer_path, self.template_path)]
        folder = cache.build(
            self.root() / f"chat-{FORMAT}" / cache.key(digests, self.max_bad_records),
            lambda out: self._write(path, out),
        )
        log_skipped(split, json.loads((folder / "bad_records.json").read_text()))
        tokens, mask, offsets = (np.load(folder / f"{name}.npy") for name in ("tokens", "mask", "offsets"))
        plan = packing.make_plan(self.packing, offsets, self.seq_len)
        return ChatRows(tokens, mask, offsets, plan, self.seq_len)

    def requirements(self) -> dict:
        return {"vocab_size": self.open_tokenizer().vocab_size, "max_seq_len": self.seq_len}

    def open_tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer_path)

    def save_artifacts(self, folder: Path) -> None:
        self.open_tokenizer().save(folder / "tokenizer.json")
        files.replace(folder / "chat_template.jinja", Path(self.template_path).read_text())

    def _write(self, path: str, out: Path) -> None:
        """The stream `S c1 S c2 ... S` of all conversations, the mask of the assistant's tokens, where each begins."""
        tokenizer, template = load_tokenizer(self.tokenizer_path), Path(self.template_path).read_text()
        bad = BadRecords(self.max_bad_records)
        tokens, mask, offsets = [], [], [0]
        for messages in _conversations(path, bad):
            ids, weights = _with_separator(template, messages, tokenizer)
            tokens.append(ids)
            mask.append(weights)
            offsets.append(offsets[-1] + len(ids))
        if not tokens:
            raise ValueError(f"{path}: no conversation in which an assistant speaks")
        end = np.array([tokenizer.separator], np.int32)
        np.save(out / "tokens.npy", np.concatenate([*tokens, end]))
        np.save(out / "mask.npy", np.concatenate([*mask, np.zeros(1, np.float32)]))
        np.save(out / "offsets.npy", np.array(offsets))
        (out / "bad_records.json").write_text(json.dumps(bad.skipped))


def _with_separator(template: str, messages: list, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    ids, weights = chat.encode(template, messages, tokenizer)
    return np.concatenate([[tokenizer.separator], ids]).astype(np.int32), np.concatenate([[0.0], weights])


def _conversations(path: str, bad: BadRecords) -> Iterator[list[chat.Message]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                messages = json.loads(line)["messages"]
                reason = _wrong(messages)
            except (ValueError, KeyError, TypeError) as error:
                reason = f"not a JSON object with messages ({error})"
            if reason:
                bad.skip(f"{path} line {number}", reason)
            else:
                yield messages


def _wrong(messages) -> str:
    if not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages):
        return "a message without role or content"
    return "" if any(m["role"] == "assistant" for m in messages) else "the assistant says nothing"


@dataclasses.dataclass(frozen=True)
class ChatRows:
    stream: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray
    plan: packing.Plan
    seq_len: int

    def __len__(self) -> int:
        return self.plan.num_rows

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        """As text's, with weight 1 only where the target is the assistant's."""
        out = packing.collate(self.stream, self.plan, indices, self.seq_len, self.offsets)
        # The same rows of the mask: which targets count lies one place behind the token that asks for it.
        flags = packing.collate(self.mask.astype(np.int32), self.plan, indices, self.seq_len, self.offsets)["targets"]
        return out | {"weights": out["weights"] * flags}
