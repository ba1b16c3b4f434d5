"""Prompts for reinforcement learning. Rewards may read any column of their records.

A prompt is a text, or messages in a chat template that asks for the assistant's answer. The column
`tools` has JSON schemas of functions for the template.
training/rollouts.py makes the batches: G consecutive rows per prompt, each with the prompt and one
answer, padded at the end.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from bigmodel_jax.core.ranges import Count, CountOrZero, NonNegative, Share, ShareAboveZero
from bigmodel_jax.core.user_code import FunctionName, name_of
from bigmodel_jax.data.base import BadRecords, DataConfig, lacks, log_skipped
from bigmodel_jax.data.fields import Field
from bigmodel_jax.data.sources.source import Source
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.text import chat, packing
from bigmodel_jax.data.text.chat_records import for_template, tools_of, unusable
from bigmodel_jax.data.text.templated import Templated
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PromptData(Templated, DataConfig):
    """Records with a prompt and columns for rewards, and the settings of sampling.

    A batch holds the arrays of packing.row, with weight 1 where the target was sampled by the
    policy; advantages (B,) float32; rollout_log_probs (B, T) float32, the sampler's
    log-probabilities of the targets.
    """

    required_by: ClassVar = {"vocab_size": "tokenizer_path", "max_seq_len": "max_tokens"}
    endless: ClassVar[bool] = True
    prompts: ClassVar[bool] = True

    compared: ClassVar = DataConfig.compared | {
        "tokenizer_path": "tokenizer",
        **dict.fromkeys(("prompt_field", "template_path", "max_prompt", "max_tokens"), "prepares"),
        **dict.fromkeys(("group", "temperature", "top_k", "top_p", "recorded", "completion_field"), "training"),
        **dict.fromkeys(("updates_per_rollout", "slots", "rollouts"), "training"),
    }

    source: Source = TableFiles()
    "where the records come from"
    prompt_field: str = "prompt"
    "the column with the prompt: a text, or a list of messages, which needs `template_path`"
    tokenizer_path: str = ""
    "the model's tokenizer.json"
    template_path: str = ""
    "the model's chat_template.jinja; a text prompt then becomes the user's message"
    max_prompt: Count = 256
    "the most tokens of a prompt; a record with a longer prompt is a bad record"
    max_tokens: Count = 256
    "the most tokens of an answer"
    group: Count = 8
    "answers per prompt in a batch, whose rewards are compared"
    temperature: NonNegative = 1.0
    "sampling temperature in training"
    top_k: CountOrZero = 0  # 0 = all
    top_p: ShareAboveZero = 1.0
    "sample from the most likely tokens that reach this probability together"
    eval_temperature: NonNegative = 0.0
    "sampling temperature of the one answer to each held-out prompt; 0: the most likely tokens"
    recorded: Share = 0.0
    """share of the answers taken from the records instead of sampled, for objectives that compare
    no answers"""
    completion_field: str = "completion"
    "the column with the record's own answer, a text, where `recorded` is not 0"
    updates_per_rollout: Count = 1
    "training steps on the same answers"
    slots: Count = 64
    "answers that are sampled at once"
    rollouts: FunctionName = ""
    """a function (config, mesh) -> Generator (inference/rollout.py) that answers instead of the
    engine"""

    def __post_init__(self):
        if self.rollouts:
            object.__setattr__(self, "rollouts", name_of("data.rollouts", self.rollouts))

    @property
    def seq_len(self) -> int:
        """The tokens of a row: prompt and answer."""
        return self.max_prompt + self.max_tokens

    def open(self, split: str) -> "PromptRows":
        self.check_files()
        bad = BadRecords(self.max_bad_records)
        prompts, records = [], []
        for tokens, record in self._prompts(split, bad):
            prompts.append(tokens)
            records.append(record)
        log_skipped(split, bad.skipped)
        if not prompts:
            raise ValueError(f"data.source: the {split} split has no prompt")
        # Rewards may read any field, so the whole records stay in memory.
        return PromptRows(prompts, records, self.seq_len, len(bad.skipped))

    def _prompts(self, split: str, bad: BadRecords) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Yield (tokens, record) of every usable record."""
        tokenize = functools.partial(self.tokens, self.open_tokenizer(), self.template())
        for where, record in self.source.records(split, self.root(), bad):
            reason, tokens = lacks(record, self.prompt_field), []
            if self.recorded and not isinstance(record.get(self.completion_field), str):
                reason = reason or f"{self.completion_field} is no text"
            if not reason:
                try:
                    tokens = tokenize(record[self.prompt_field], tools_of(record, "tools"))
                except ValueError as error:
                    reason = str(error)
            if len(tokens) > self.max_prompt:
                reason = f"its prompt has {len(tokens)} tokens, more than data.max_prompt = {self.max_prompt}"
            if reason:
                bad.skip(where, reason)
            else:
                yield tokens, record

    def tokens(self, tokenizer: Tokenizer, template: str, prompt: Any, tools: list | None = None) -> list[int]:
        """Return the tokens before an answer; raises ValueError where the prompt is unusable.

        tools: JSON schemas of functions for the template.
        """
        text = isinstance(prompt, str)
        if not prompt or not (text or isinstance(prompt, list)):
            raise ValueError(f"its {self.prompt_field} is empty" if not prompt else f"{self.prompt_field} is no text")
        if template:
            messages = [{"role": "user", "content": prompt}] if text else prompt
            if not all(isinstance(m, dict) for m in messages):
                raise ValueError(f"its {self.prompt_field} is no text and no list of messages")
            if reason := unusable(messages):
                raise ValueError(reason)
            messages = for_template(messages, None, template, tools)
            return chat.prompt(template, messages, tokenizer, tools=tools)
        if not text:
            raise ValueError("its prompt is messages, which need data.template_path")
        return [tokenizer.start, *tokenizer.encode(prompt)]

    def row(self) -> dict[str, Field]:
        sampled = {"rollout_log_probs": Field((self.seq_len,), "float32", ("seq",)), "advantages": Field(())}
        return packing.row(self.seq_len) | sampled

    def validate(self, batch_size: int) -> None:
        if batch_size % self.group:
            raise ValueError(
                f"train.batch_size = {batch_size} is not divisible by data.group = {self.group}: a batch is made of whole "
                "groups of answers"
            )

    def open_tokenizer(self) -> Tokenizer:
        self.check_files()
        return super().open_tokenizer()


@dataclasses.dataclass(frozen=True)
class PromptRows:
    """The rows of one split: the tokens and the record of each prompt."""

    prompts: list[list[int]]
    records: list[dict[str, Any]]
    seq_len: int
    skipped: int

    def __len__(self) -> int:
        return len(self.prompts)

    def inputs(self, index: int) -> None:
        """Return nothing: the model reads only a prompt's tokens."""

    def picture(self, index: int) -> str:
        """Return "", because a prompt has no image."""
        return ""

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        """Return the prompts without answers. No token has weight."""
        chosen = [self.prompts[i] for i in indices]
        nothing = [np.zeros(0, np.int32)] * len(chosen)
        none = [np.zeros(0, np.float32)] * len(chosen)
        return collate(chosen, nothing, none, none, self.seq_len) | {"advantages": np.zeros(len(chosen), np.float32)}

    def counts(self) -> dict:
        lengths = [len(tokens) for tokens in self.prompts]
        return {
            "prompts": len(self),
            "tokens of a prompt, mean": float(np.mean(lengths)),
            "tokens of a prompt, most": max(lengths),
            "skipped records": self.skipped,
        }


def collate(prompts, answers, asked, log_probs, seq_len: int) -> dict[str, np.ndarray]:
    """Return rows of prompt and answer: each token with its target.

    tokens, targets, segment_ids and positions are int32 (B, T); weights and rollout_log_probs are
    float32 (B, T). `asked` is 1 where a token of the answer was sampled by the policy. `log_probs`
    are the sampler's log-probabilities.
    """
    shape = (len(prompts), seq_len)
    whole = np.zeros((len(prompts), seq_len + 1), np.int32)
    segments, weights, said = np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for row, (prompt, answer, mask, nats) in enumerate(zip(prompts, answers, asked, log_probs, strict=True)):
        begin, end = len(prompt), len(prompt) + len(answer)
        whole[row, :begin], whole[row, begin:end] = prompt, answer
        # The last token is only a target, never an input.
        segments[row, : max(end - 1, begin)] = 1
        # Place t predicts token t + 1, so the answer's targets begin one place earlier.
        weights[row, begin - 1 : end - 1], said[row, begin - 1 : end - 1] = mask, nats
    positions = np.arange(seq_len, dtype=np.int32) * segments
    return {
        "tokens": whole[:, :-1] * segments,
        "targets": np.where(weights > 0, whole[:, 1:], 0),
        "segment_ids": segments,
        "positions": positions,
        "weights": weights,
        "rollout_log_probs": said,
    }
