"""Records of the forms in which people keep preferences, read as one: a prompt and answers to it, and their tokens.

| form | columns |
| --- | --- |
| pairs | prompt, chosen, rejected: texts or lists of messages; the prompt may stand in front of both answers as well |
| pairs without a prompt column | chosen, rejected: what both begin with is the prompt |
| single answers | prompt, completion, and label: whether the answer is wanted |

Messages are {"role", "content"}, or ShareGPT's {"from", "value"}; one message may stand for a list of it alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bigmodel_jax.data.base import lacks
from bigmodel_jax.data.text import chat
from bigmodel_jax.data.text.chat import Message
from bigmodel_jax.data.text.chat_records import ROLES, Reasoning, tools_of, with_reasoning
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

Side = str | list[Message]


class Prompted(NamedTuple):
    """A prompt and the answers to it, texts or messages alike; wanted: of each answer; tools: what the template is told."""

    prompt: Side
    answers: list[Side]
    wanted: tuple[bool, ...]
    tools: list | None = None


class Encoded(NamedTuple):
    """prompt (P,) int32: the tokens that all answers follow; answers: the tokens of each, int32."""

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


# ---------------------------------------------------------------- from a record to a prompt and its answers


def read_pair(record: dict[str, Any], columns: Columns) -> Prompted:
    """The pair of a record; ValueError with the reason for a record that is none."""
    if reason := lacks(record, columns.chosen, columns.rejected):
        raise ValueError(f"{reason} (data.chosen_field and rejected_field name others)")
    answers = [_side(record[name], name) for name in (columns.chosen, columns.rejected)]
    given = record.get(columns.prompt)
    if given is None:
        prompt, answers = _shared(answers)
    else:
        prompt = _side(given, columns.prompt)
        answers = [_behind(prompt, answer) for answer in answers]
    return Prompted(prompt, answers, (True, False), _tools(record, columns))


def read_answers(record: dict[str, Any], columns: Columns) -> Prompted:
    """The single answer of a record, or both answers of a pair; ValueError with the reason for another record."""
    if columns.chosen in record and columns.rejected in record:
        return read_pair(record, columns)
    if reason := lacks(record, columns.prompt, columns.completion, columns.label):
        raise ValueError(reason)
    label = record[columns.label]
    if label not in (True, False, "true", "false", "True", "False"):
        raise ValueError(f"its {columns.label} is {str(label)[:40]!r}; allowed: true, false")
    prompt = _side(record[columns.prompt], columns.prompt)
    answer = _behind(prompt, _side(record[columns.completion], columns.completion))
    return Prompted(prompt, [answer], (str(label) in ("True", "true", "1"),), _tools(record, columns))


def _tools(record: dict[str, Any], columns: Columns) -> list | None:
    return tools_of(record.get(columns.tools), columns.tools)


def _side(value: Any, name: str) -> Side:
    if isinstance(value, str):
        return value
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise ValueError(f"its {name} is no text and no list of messages")
    value = [_of_sharegpt(m) if {"from", "value"} <= m.keys() else m for m in value]
    for message in value:
        if "role" not in message or (message.get("content") is None and not message.get("tool_calls")):
            raise ValueError(f"a message without role or content; its keys: {', '.join(map(str, message)) or 'none'}")
    return value


def _of_sharegpt(turn: dict) -> Message:
    if turn["from"] not in ROLES:
        raise ValueError(f"a message is from {str(turn['from'])!r}; there is: {', '.join(ROLES)}")
    return {"role": ROLES[turn["from"]], "content": turn["value"]}


def _behind(prompt: Side, answer: Side) -> Side:
    """The answer without the prompt, where it repeats it."""
    if isinstance(answer, list):
        asked = _as_messages(prompt, "user")
        return answer[len(asked) :] if len(asked) < len(answer) and answer[: len(asked)] == asked else answer
    return answer


def _shared(answers: list[Side]) -> tuple[Side, list[Side]]:
    """What both begin with, and what is left of them; a text is cut in front of a space, as in TRL."""
    first, second = answers
    if isinstance(first, str) != isinstance(second, str):
        raise ValueError("one answer is a text and the other one is messages, with no prompt beside them")
    same = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    if isinstance(first, str) and same > 0 and first[same - 1] == " ":
        same -= 1
    if isinstance(first, list) and same == min(len(first), len(second)) and first != second:
        raise ValueError("one answer begins with all of the other one, so no prompt can be told from them")
    if first == second:
        raise ValueError("chosen and rejected are the same")
    return first[:same], [first[same:], second[same:]]


def _as_messages(side: Side, role: str) -> list[Message]:
    return [{"role": role, "content": side}] if isinstance(side, str) else side


# ---------------------------------------------------------------- from texts to tokens


def encode(
    found: Prompted, tokenizer: Tokenizer, template: str, *, escape: bool = False, reasoning: Reasoning = "keep"
) -> Encoded:
    """The tokens of a prompt and of each answer; ValueError with the reason for what cannot be trained.

    An answer begins where its conversation's tokens leave those that ask for it, as in TRL; all answers share the shortest
    such prompt. It ends with a stop token: the template's, or one that is put behind it. template "": texts as they are.
    reasoning: whether the template gets what a message carries of it.
    """
    if template:
        prompt, whole = _templated(found, tokenizer, template, escape, reasoning)
    else:
        prompt, whole = _plain(found, tokenizer, escape)
    # A first token has nothing before it that could ask for it.
    size = max(1, min(_common(prompt, ids) for ids in whole))
    answers = [_ended(ids[size:], tokenizer) for ids in whole]
    if len(answers) == 2 and answers[0] == answers[1]:
        raise ValueError("chosen and rejected are the same tokens")
    as_array = lambda ids: np.array(ids, np.int32)  # noqa: E731
    return Encoded(as_array(prompt[:size]), [as_array(ids) for ids in answers])


def _templated(
    found: Prompted, tokenizer: Tokenizer, template: str, escape: bool, reasoning: Reasoning
) -> tuple[list[int], list[list[int]]]:
    asked = with_reasoning(_as_messages(found.prompt, "user"), reasoning, template)
    prompt, whole = chat.prompt(template, asked, tokenizer, tools=found.tools), []
    for side in found.answers:
        answer = with_reasoning(_as_messages(side, "assistant"), reasoning, template)
        if not any(m["role"] == "assistant" for m in answer):
            roles = ", ".join(dict.fromkeys(str(m["role"]) for m in answer)) or "none"
            raise ValueError(f"an answer in which the assistant says nothing; its roles: {roles}")
        ids = chat.encode(template, asked + answer, tokenizer, tools=found.tools, escape=escape).ids.tolist()
        if _common(prompt, ids) == len(ids) and any(m.get("content") for m in answer):
            raise ValueError("the template writes nothing of the assistant's answer, so nothing can be trained")
        whole.append(ids)
    return prompt, whole


def _plain(found: Prompted, tokenizer: Tokenizer, escape: bool) -> tuple[list[int], list[list[int]]]:
    sides = [found.prompt, *found.answers]
    if not all(isinstance(side, str) for side in sides):
        raise ValueError("its answers are messages, which need a template (data.template_path)")
    chat.quote([{"role": "user", "content": side} for side in sides], tokenizer, escape=escape)
    # What starts a text, as `generate` feeds it.
    return [tokenizer.start, *tokenizer.encode(found.prompt)], [
        [tokenizer.start, *tokenizer.encode(found.prompt + answer)] for answer in found.answers
    ]


def _common(a: Sequence, b: Sequence) -> int:
    """How many first elements are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _ended(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    return ids if set(ids) & set(tokenizer.stops) else [*ids, tokenizer.stops[0]]
