"""Chat templates, rendered as Hugging Face renders them, and which tokens of a conversation the assistant wrote."""

import bisect
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bigmodel_jax.data.text import chat_process
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

Message = dict[str, Any]  # {"role": "user" | "assistant" | "system", "content": ...}

# Marks inside a rendered text: around {% generation %}, and around what a message spells like a control token. Unicode
# reserves these four code points for a program's own use, so no text holds them.
BEGIN, END, QUOTE, UNQUOTE = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
MARKS = re.compile("[\ufdd0-\ufdd3]")


class Sample(NamedTuple):
    """ids (T,) int32; mask (T,) float32, 1.0 where the assistant wrote the token, its end of turn included."""

    ids: np.ndarray
    mask: np.ndarray


# ---------------------------------------------------------------- from messages to text


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    special_tokens: dict[str, str] | None = None,
) -> str:
    """The conversation as the model reads it; ValueError for what the template refuses.

    special_tokens: bos_token and the like, as `Tokenizer.names` gives them.
    """
    return MARKS.sub("", _render(template, messages, add_generation_prompt, special_tokens or {}))


def _render(template: str, messages: Sequence[Message], add_generation_prompt: bool, names: dict[str, str]) -> str:
    """The text with its marks."""
    fields = {"add_generation_prompt": add_generation_prompt, "tools": None, "documents": None, **names}
    return chat_process.render(template, {"messages": list(messages), **fields})


# ---------------------------------------------------------------- control tokens in what people write


def _quoted(value: Any, control: re.Pattern) -> Any:
    """The same messages with marks around every control token in their strings."""
    if isinstance(value, str):
        return control.sub(f"{QUOTE}\\g<0>{UNQUOTE}", MARKS.sub("", value))
    if isinstance(value, dict):
        return {name: _quoted(x, control) for name, x in value.items()}
    return [_quoted(x, control) for x in value] if isinstance(value, list) else value


def quote(messages: Sequence[Message], tokenizer: Tokenizer, *, escape: bool) -> list[Message]:
    """Messages in which a control token is marked as text; without `escape` a control token is a ValueError."""
    longest_first = sorted(tokenizer.control, key=len, reverse=True)
    out = _quoted(list(messages), re.compile("|".join(map(re.escape, longest_first)) or "(?!)"))
    found = re.search(f"{QUOTE}(.*?){UNQUOTE}", json.dumps(out, ensure_ascii=False), re.DOTALL)
    if found and not escape:
        raise ValueError(
            f"a message holds {found[1]!r}, a control token of this tokenizer; data.control_tokens = 'escape' reads it as text"
        )
    return out


# ---------------------------------------------------------------- from text to tokens


def _tokens(marked: str, tokenizer: Tokenizer) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids, and which characters of the text without marks each stands for.

    The text goes through the tokenizer at once, as in transformers. Where a message spells a control token, the text is
    cut around it, since a tokenizer reads either all such names as tokens or none.
    """
    parts = re.split(f"{QUOTE}(.*?){UNQUOTE}", re.sub(f"[{BEGIN}{END}]", "", marked), flags=re.DOTALL)
    ids, offsets = tokenizer.encode_rendered(MARKS.sub("", parts[0]))
    place = len(MARKS.sub("", parts[0]))
    for n, part in enumerate(parts[1:], 1):
        part = MARKS.sub("", part)  # a template that cuts a text in two leaves single marks
        more, where = tokenizer.encode_rendered(part, inside=True, as_text=n % 2 == 1)
        ids += more
        offsets += [(place + a, place + b) for a, b in where]
        place += len(part)
    return ids, offsets


def prompt(template: str, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The tokens that ask for the assistant's answer to `messages`, which are text whatever they spell."""
    quoted = quote(messages, tokenizer, escape=True)
    return _tokens(_render(template, quoted, True, tokenizer.names()), tokenizer)[0]


def encode(
    template: str, messages: Sequence[Message], tokenizer: Tokenizer, *, escape: bool = False, last: bool = False
) -> Sample:
    """The conversation as one sample: the ids of transformers' `apply_chat_template`, and what the assistant wrote of them.

    The template's {% generation %} marks say what that is. Without marks it is what the rendering gains from the
    generation prompt before a turn to the turn's end; a turn that the whole conversation shows otherwise has mask 0.
    What ends a turn is the assistant's, too. last: the last turn alone. ValueError for what the template refuses, and
    for a control token in a message unless `escape`.
    """
    quoted = quote(messages, tokenizer, escape=escape)
    marked = _render(template, quoted, False, tokenizer.names())
    marks = [m.start() for m in MARKS.finditer(marked)]
    spans = [span for span in _spans(template, quoted, tokenizer.names(), marked)[-1 if last else 0 :] if span]
    ids, offsets = _tokens(marked, tokenizer)
    mask = np.zeros(len(ids), np.float32)
    begins, ends = (np.array([x[n] for x in offsets], int) for n in (0, 1))
    for a, b in spans:
        first, past = (x - bisect.bisect_left(marks, x) for x in (a, b))
        mask[(begins < past) & (ends > first)] = 1.0
    _close(ids, mask, tokenizer)
    return Sample(np.array(ids, np.int32), mask)


def samples(template: str, messages: Sequence[Message], tokenizer: Tokenizer, *, escape: bool = False) -> list[Sample]:
    """The conversation as training reads it: one sample, or one for each of the assistant's turns.

    Templates such as Qwen3's write a turn otherwise once another follows (without its reasoning). The model never
    generates that form, so each turn then gets the conversation up to it as a sample of its own.
    """
    quoted = quote(messages, tokenizer, escape=escape)
    names = tokenizer.names()
    spans = _spans(template, quoted, names, _render(template, quoted, False, names))
    if all(spans):
        return [encode(template, messages, tokenizer, escape=escape)]
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return [encode(template, messages[: i + 1], tokenizer, escape=escape, last=True) for i in turns]


def _spans(
    template: str, messages: Sequence[Message], names: dict[str, str], marked: str
) -> list[tuple[int, int] | None]:
    """Where in `marked` each of the assistant's turns stands; None for one that stands there otherwise than generated."""
    if BEGIN in marked:
        return [m.span(1) for m in re.finditer(f"{BEGIN}(.*?){END}", marked, re.DOTALL)]
    out: list[tuple[int, int] | None] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = _render(template, messages[:i], True, names), _render(template, messages[: i + 1], False, names)
        shared = next(
            (n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
        )
        # A generation prompt may open more than the turn shows (DeepSeek-R1's <think>), but not change what came before.
        if shared < len(before) and not after[:shared].startswith(_render(template, messages[:i], False, names)):
            raise ValueError(
                "chat template: it rewrites earlier turns for every answer, so the assistant's tokens cannot be told "
                "apart; {% generation %} marks them"
            )
        out.append((shared, len(after)) if marked.startswith(after) else None)
    return out


def _close(ids: list[int], mask: np.ndarray, tokenizer: Tokenizer) -> None:
    """Adds to each of the assistant's turns that holds no stop token the control token that follows it.

    GLM's turns end where <|user|> begins, and some marks leave the end of the turn outside.
    """
    edges = np.flatnonzero(np.diff(mask, prepend=0.0, append=0.0))
    ends = set(tokenizer.stops) | set(tokenizer.control.values()) - {tokenizer.start}
    for begin, past in edges.reshape(-1, 2).tolist():
        if past < len(ids) and ids[past] in ends and not set(ids[begin:past]) & set(tokenizer.stops):
            mask[past] = 1.0
