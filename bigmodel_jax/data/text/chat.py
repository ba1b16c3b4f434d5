"""Renders chat templates as Hugging Face does, and finds the tokens that the assistant wrote."""

import bisect
import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bigmodel_jax.data.text import chat_process
from bigmodel_jax.data.text.chat_quoted import BEGIN, END, MARKS, QUOTE, UNQUOTE, Message, quote, with_objects
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer


class Sample(NamedTuple):
    """ids (T,) int32; mask (T,) float32: 1.0 for the assistant's tokens and ends of turn."""

    ids: np.ndarray
    mask: np.ndarray


# ---------------------------------------------------------------- from messages to text


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    special_tokens: dict[str, str] | None = None,
    tools: list | None = None,
) -> str:
    """Return the conversation as the model reads it. Raises ValueError where the template refuses
    it.

    `special_tokens` holds bos_token and the like, as `Tokenizer.names` gives them. `tools` holds
    JSON schemas of functions.
    """
    return MARKS.sub("", _Template(template, special_tokens or {}, tools)(messages, prompt=add_generation_prompt))


@dataclasses.dataclass(frozen=True)
class _Template:
    """A template, and what it gets besides the messages."""

    source: str
    names: dict[str, str]
    tools: list | None = None

    def __call__(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """Return the rendered text, with its marks."""
        fields = {"add_generation_prompt": prompt, "tools": self.tools, "documents": None, **self.names}
        text = chat_process.render(self.source, {"messages": list(messages), **fields})
        if any(isinstance(m.get("content"), list) and m["content"] and str(m["content"]) in text for m in messages):
            raise ValueError("chat template: it writes a list of parts as Python does, so content must be one text")
        return text


def check(template: str, names: dict[str, str]) -> None:
    """Raise ValueError for a template that leaves out the assistant's messages.

    A template may refuse this test conversation, for example because it requires a system message.
    Then the records will show whether it works.
    """
    said = "bigmodel"
    try:
        text = _Template(template, names)([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": said}])
    except ValueError:
        return
    if said not in text:
        raise ValueError(
            "it has no assistant: the template leaves out the assistant's messages, so nothing can be trained"
        )


# ---------------------------------------------------------------- from text to tokens


def _tokens(marked: str, tokenizer: Tokenizer) -> tuple[list[int], list[tuple[int, int]]]:
    """Return (token ids, the range of characters in the unmarked text for each token).

    The text is tokenized as a whole, as in transformers. But around quoted control tokens the text
    is cut, because a tokenizer reads either all control tokens as such or none.
    """
    parts = re.split(f"{QUOTE}(.*?){UNQUOTE}", re.sub(f"[{BEGIN}{END}]", "", marked), flags=re.DOTALL)
    ids, offsets = tokenizer.encode_rendered(MARKS.sub("", parts[0]))
    place = len(MARKS.sub("", parts[0]))
    for n, part in enumerate(parts[1:], 1):
        part = MARKS.sub("", part)  # a template that cuts a text in two leaves unpaired marks
        more, where = tokenizer.encode_rendered(part, inside=True, as_text=n % 2 == 1)
        ids += more
        offsets += [(place + a, place + b) for a, b in where]
        place += len(part)
    return ids, offsets


def prompt(template: str, messages: Sequence[Message], tokenizer: Tokenizer, *, tools: list | None = None) -> list[int]:
    """Return the tokens that prompt for the assistant's answer.

    Control tokens in messages and tools are read as plain text.
    """
    quoted, render = _quoted_template(template, messages, tokenizer, tools, True)
    return _tokens(render(quoted, prompt=True), tokenizer)[0]


def plain(before: str, answer: str, tokenizer: Tokenizer, *, escape: bool = False) -> Sample:
    """Return a prompt and its completion without a template, as one text after the start token.

    `generate` feeds prompts in the same way. A token that spans prompt and completion belongs to
    the completion, as in TRL.
    """
    before, answer = quote([before, answer], tokenizer, escape=escape)
    ids, mask = _sample(before + answer, [(len(before), len(before + answer))], tokenizer)
    return Sample(np.append(np.int32(tokenizer.start), ids), np.append(np.float32(0.0), mask))


def encode(
    template: str,
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    tools: list | None = None,
    first: int = 0,
    escape: bool = False,
    last: bool = False,
) -> Sample:
    """Return the conversation as one sample, with the ids of transformers' `apply_chat_template`.

    The template's {% generation %} marks show what the assistant wrote. Without marks, an
    assistant's turn is what rendering adds after the generation prompt, up to the end of the turn.
    A turn that the whole conversation renders differently has mask 0. The token that ends a turn is
    the assistant's.

    - first: turns before this message have mask 0.
    - last: only the last turn has mask 1.

    Raises ValueError for what the template refuses, and without `escape` for a control token in a
    message.
    """
    quoted, render = _quoted_template(template, messages, tokenizer, tools, escape)
    marked = render(quoted)
    spans = [span for span in _spans(render, quoted, marked, first)[-1 if last else 0 :] if span]
    ids, mask = _sample(marked, spans, tokenizer)
    _close(ids, mask, tokenizer)
    return Sample(ids, mask)


def samples(
    template: str,
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    tools: list | None = None,
    first: int = 0,
    escape: bool = False,
    last: bool = False,
) -> list[Sample]:
    """Return the conversation as training reads it: one sample, or one for each assistant turn.

    Some templates, such as Qwen3's, render a turn differently once another follows (without its
    reasoning). The model never generates that form, so each turn then becomes a sample of its own,
    with the conversation up to it. `first` and `last` mean the same as in `encode`. Also raises
    ValueError where a sample has no token to train on: an empty answer whose end the template does
    not write.
    """
    quoted, render = _quoted_template(template, messages, tokenizer, tools, escape)
    spans = _spans(render, quoted, render(quoted), first)
    given = {"tools": tools, "first": first, "escape": escape}
    if all(spans[-1:] if last else spans):
        out = [encode(template, messages, tokenizer, **given, last=last)]
    else:
        turns = [i for i in range(first, len(messages)) if messages[i]["role"] == "assistant"][-1 if last else 0 :]
        out = [encode(template, messages[: i + 1], tokenizer, **given, last=True) for i in turns]
    if not all(sample.mask.any() for sample in out):
        raise ValueError(
            "the template writes nothing of an answer of the assistant, not even its end: nothing to train"
        )
    return out


def _quoted_template(
    template: str, messages: Sequence[Message], tokenizer: Tokenizer, tools: list | None, escape: bool
) -> tuple[list[Message], _Template]:
    """Return the messages, and the template with its tools. Control tokens in both are quoted.

    As in vLLM, a template gets the arguments of tool calls as objects. Where it cannot write them,
    as DeepSeek-V3's, it gets the JSON text of the record.
    """
    tools = None if tools is None else quote(tools, tokenizer, escape=escape)
    render, messages = _Template(template, tokenizer.names(), tools), list(messages)
    parsed = list(map(with_objects, messages))
    if parsed != messages and not _writes_objects(template, tuple(render.names.items())):
        return quote(messages, tokenizer, escape=escape), render
    # The text is parsed before the quotes are set, since JSON's escapes can spell a control token.
    return quote(parsed, tokenizer, escape=escape), render


@functools.lru_cache(maxsize=64)
def _writes_objects(template: str, names: tuple[tuple[str, str], ...]) -> bool:
    """Return whether a template can write the arguments of a tool call as an object.

    A template that writes neither an object nor text refuses the test conversation for another
    reason. It gets objects, as in vLLM.
    """
    arguments = {"bigmodel": True}

    def writes(given: Any) -> bool:
        called = {"name": "bigmodel", "arguments": given}
        # Mistral's templates take ids of nine characters alone. Some templates read a call without
        # "function".
        call = {"id": "bigmodel0", "type": "function", "function": called} | called
        said = {"role": "assistant", "content": "", "tool_calls": [call]}
        try:
            text = _Template(template, dict(names))([{"role": "user", "content": "Hi"}, said])
        except ValueError:
            return False
        return str(arguments) not in text  # `~` writes an object as Python does, which is no JSON

    return writes(arguments) or not writes(json.dumps(arguments))


def _sample(marked: str, spans: Sequence[tuple[int, int]], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and mask of a marked text. The mask is 1.0 for tokens that overlap a span."""
    marks = [m.start() for m in MARKS.finditer(marked)]
    ids, offsets = _tokens(marked, tokenizer)
    mask = np.zeros(len(ids), np.float32)
    begins, ends = (np.array([x[n] for x in offsets], int) for n in (0, 1))
    for a, b in spans:
        first, past = (x - bisect.bisect_left(marks, x) for x in (a, b))
        # A token that overlaps the span in one character is trained on whole.
        mask[(begins < past) & (ends > first)] = 1.0
    return np.array(ids, np.int32), mask


def _spans(render: _Template, messages: Sequence[Message], marked: str, first: int) -> list[tuple[int, int] | None]:
    """Return the range in `marked` of each assistant turn from message `first` on.

    A turn that the whole conversation renders differently from its generation gives None.
    """
    if BEGIN in marked:
        earlier = any(m["role"] == "assistant" for m in messages[:first])
        before = render(messages[:first]).count(BEGIN) if earlier else 0
        return [m.span(1) for m in re.finditer(f"{BEGIN}(.*?){END}", marked, re.DOTALL)][before:]
    out: list[tuple[int, int] | None] = []
    for i, message in enumerate(messages[first:], first):
        if message["role"] != "assistant":
            continue
        before, after = render(messages[:i], prompt=True), render(messages[: i + 1])
        shared = next(
            (n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
        )
        # A generation prompt may begin more than the turn shows (DeepSeek-R1's <think>), but must
        # not change the turns before.
        if shared < len(before) and not after[:shared].startswith(render(messages[:i])):
            raise ValueError(
                "chat template: it rewrites earlier turns for every answer, so the assistant's tokens cannot be told "
                "apart; {% generation %} marks them"
            )
        out.append((shared, len(after)) if marked.startswith(after) else None)
    return out


def _close(ids: np.ndarray, mask: np.ndarray, tokenizer: Tokenizer) -> None:
    """Extend each assistant turn that holds no stop token by the control token that follows it.

    GLM's turns end where <|user|> begins, and the marks of some templates leave out the end of the
    turn.
    """
    edges = np.flatnonzero(np.diff(mask, prepend=0.0, append=0.0))
    ends = set(tokenizer.stops) | set(tokenizer.control.values()) - {tokenizer.start}
    for begin, past in edges.reshape(-1, 2).tolist():
        if past < len(ids) and ids[past] in ends and not np.isin(ids[begin:past], tokenizer.stops).any():
            mask[past] = 1.0
