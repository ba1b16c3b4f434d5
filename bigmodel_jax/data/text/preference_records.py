"""Reads the common record formats of preferences into a prompt, answers and their tokens.

| form | columns |
| --- | --- |
| pairs | prompt, chosen, rejected: texts or messages; both answers may repeat the prompt |
| pairs without prompt | chosen, rejected: their common beginning is the prompt |
| single answers | prompt, completion, and label: whether the answer is wanted |

Messages are {"role", "content"}, or ShareGPT's {"from", "value"}. A single message may stand for a
list of one message.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bigmodel_jax.data.base import lacks
from bigmodel_jax.data.text import chat, chat_quoted
from bigmodel_jax.data.text.chat_quoted import Message
from bigmodel_jax.data.text.chat_records import Reasoning, for_template, of_sharegpt, present, tools_of, unusable
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

Side = str | list[Message]


class Prompted(NamedTuple):
    """A prompt and its answers, all texts or all messages.

    - wanted: whether each answer is preferred.
    - tools: the tools for the template, or None.
    """

    prompt: Side
    answers: list[Side]
    wanted: tuple[bool, ...]
    tools: list | None = None


class Encoded(NamedTuple):
    """prompt (P,) int32: the tokens that all answers share; answers: the tokens of each, int32."""

    prompt: np.ndarray
    answers: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of a record's columns."""

    prompt: str
    chosen: str
    rejected: str
    completion: str = ""
    label: str = ""
    tools: str = "tools"


# ---------------------------------------------------------------- from a record to a prompt


def read_pair(record: dict[str, Any], columns: Columns) -> Prompted:
    """Return the pair of a record. Raises ValueError with the reason where there is none."""
    if reason := lacks(record, columns.chosen, columns.rejected):
        raise ValueError(f"{reason} (data.chosen_field and rejected_field name others)")
    answers = [_side(record[name], name) for name in (columns.chosen, columns.rejected)]
    given = record.get(columns.prompt)
    if given is None:
        prompt, answers = _shared(answers)
    else:
        prompt = _side(given, columns.prompt)
        answers = [_behind(prompt, answer) for answer in answers]
    return Prompted(prompt, answers, (True, False), tools_of(record, columns.tools))


def read_answers(record: dict[str, Any], columns: Columns) -> Prompted:
    """Return the single answer of a record, or both of a pair; else raises ValueError."""
    # Tables give every record every column, and None where the record has no value.
    if record.get(columns.chosen) is not None and record.get(columns.rejected) is not None:
        return read_pair(record, columns)
    if reason := lacks(record, columns.prompt, columns.completion, columns.label):
        raise ValueError(reason)
    label = record[columns.label]
    if not isinstance(label, bool | int | str) or label not in (True, False, "true", "false", "True", "False"):
        raise ValueError(f"its {columns.label} is {str(label)[:40]!r}; allowed: true, false")
    prompt = _side(record[columns.prompt], columns.prompt)
    answer = _behind(prompt, _side(record[columns.completion], columns.completion))
    return Prompted(prompt, [answer], (str(label) in ("True", "true", "1"),), tools_of(record, columns.tools))


def _side(value: Any, name: str) -> Side:
    if isinstance(value, str):
        return value
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise ValueError(f"its {name} is no text and no list of messages")
    value = [of_sharegpt(m) if {"from", "value"} <= m.keys() else m for m in value]
    if reason := unusable(value):
        raise ValueError(reason)
    return [present(m) for m in value]


def _behind(prompt: Side, answer: Side) -> Side:
    """Return the answer without the prompt, where the answer repeats it."""
    if isinstance(answer, list):
        asked = _as_messages(prompt, "user")
        return answer[len(asked) :] if len(asked) < len(answer) and answer[: len(asked)] == asked else answer
    return answer


def _shared(answers: list[Side]) -> tuple[Side, list[Side]]:
    """Return (the common beginning, the rest of each). A text is cut before a space, as in TRL."""
    first, second = answers
    if isinstance(first, str) != isinstance(second, str):
        raise ValueError("one answer is a text and the other one is messages, with no prompt beside them")
    same = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    if isinstance(first, str) and same > 0 and first[same - 1] == " ":
        same -= 1
    if isinstance(first, list) and same == min(len(first), len(second)) and first != second:
        raise ValueError("one answer begins with the whole other answer, so their common prompt is not known")
    if first == second:
        raise ValueError("chosen and rejected are the same")
    return first[:same], [first[same:], second[same:]]


def _as_messages(side: Side, role: str) -> list[Message]:
    return [{"role": role, "content": side}] if isinstance(side, str) else side


# ---------------------------------------------------------------- from texts to tokens


def encode(
    found: Prompted, tokenizer: Tokenizer, template: str, *, escape: bool = False, reasoning: Reasoning = "keep"
) -> Encoded:
    """Return the tokens of the prompt and of each answer. Raises ValueError for untrainable
    records.

    An answer begins where the tokens of its conversation differ from those of the generation
    prompt, as in TRL. All answers share the shortest such prompt. An answer ends with a stop token,
    the template's or an added one. An empty `template` takes texts as they are. `reasoning` is
    "keep" or "strip".
    """
    if template:
        prompt, whole = _templated(found, tokenizer, template, escape, reasoning)
    else:
        prompt, whole = _plain(found, tokenizer, escape)
    # The first token cannot be a target, because nothing stands before it.
    size = max(1, min(_common(prompt, ids) for ids in whole))
    answers = [_ended(ids[size:], tokenizer) for ids in whole]
    if len(answers) == 2 and answers[0] == answers[1]:
        raise ValueError("chosen and rejected are the same tokens")
    as_array = lambda ids: np.array(ids, np.int32)  # noqa: E731
    return Encoded(as_array(prompt[:size]), [as_array(ids) for ids in answers])


def _templated(
    found: Prompted, tokenizer: Tokenizer, template: str, escape: bool, reasoning: Reasoning
) -> tuple[list[int], list[list[int]]]:
    asked = for_template(_as_messages(found.prompt, "user"), reasoning, template, found.tools)
    prompt, whole = chat.prompt(template, asked, tokenizer, tools=found.tools), []
    for side in found.answers:
        answer = for_template(_as_messages(side, "assistant"), reasoning, template)
        if not any(m["role"] == "assistant" for m in answer):
            roles = ", ".join(dict.fromkeys(str(m["role"]) for m in answer)) or "none"
            raise ValueError(f"in one answer the assistant says nothing; its roles: {roles}")
        if answer[0]["role"] in ("system", "developer", "user"):
            raise ValueError(
                f"one answer begins with a message of the {answer[0]['role']} that is not in the prompt; "
                "it must begin with the assistant's, or with all of the prompt"
            )
        ids = chat.encode(template, asked + answer, tokenizer, tools=found.tools, escape=escape).ids.tolist()
        if _common(prompt, ids) == len(ids) and any(m.get("content") for m in answer):
            raise ValueError("the template leaves out the assistant's answer, so nothing can be trained")
        whole.append(ids)
    return prompt, whole


def _plain(found: Prompted, tokenizer: Tokenizer, escape: bool) -> tuple[list[int], list[list[int]]]:
    sides = [found.prompt, *found.answers]
    if not all(isinstance(side, str) for side in sides):
        raise ValueError("its answers are messages, which need a template (data.template_path)")
    # `encode` reads control tokens as text anyway, so only the check of `quote` is needed.
    chat_quoted.quote([{"role": "user", "content": side} for side in sides], tokenizer, escape=escape)
    # A text begins with the start token, as `generate` feeds it.
    # A token may span prompt and answer, so both are tokenized as one text.
    return [tokenizer.start, *tokenizer.encode(found.prompt)], [
        [tokenizer.start, *tokenizer.encode(found.prompt + answer)] for answer in found.answers
    ]


def _common(a: Sequence, b: Sequence) -> int:
    """Return how many leading elements are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _ended(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    return ids if set(ids) & set(tokenizer.stops) else [*ids, tokenizer.stops[0]]
