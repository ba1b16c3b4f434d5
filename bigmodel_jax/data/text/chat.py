"""Chat templates, rendered as Hugging Face renders them, and which tokens of a conversation the assistant wrote."""

import bisect
import dataclasses
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
    tools: list | None = None,
) -> str:
    """The conversation as the model reads it; ValueError for what the template refuses.

    special_tokens: bos_token and the like, as `Tokenizer.names` gives them. tools: JSON schemas of functions.
    """
    return MARKS.sub("", _Template(template, special_tokens or {}, tools)(messages, prompt=add_generation_prompt))


@dataclasses.dataclass(frozen=True)
class _Template:
    """A template with what it is told beside the messages."""

    source: str
    names: dict[str, str]
    tools: list | None = None

    def __call__(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The text with its marks."""
        fields = {"add_generation_prompt": prompt, "tools": self.tools, "documents": None, **self.names}
        return chat_process.render(self.source, {"messages": list(messages), **fields})


def check(template: str, names: dict[str, str]) -> None:
    """ValueError for a template that writes nothing of what the assistant says.

    A template that refuses these two messages (it may want a system message) is judged by the records.
    """
    said = "bigmodel"
    try:
        text = _Template(template, names)([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": said}])
    except ValueError:
        return
    if said not in text:
        raise ValueError(
            "it has no assistant: it writes nothing of the assistant's messages, so nothing can be trained"
        )


# ---------------------------------------------------------------- control tokens in what people write


def _quoted(value: Any, control: re.Pattern) -> Any:
    """The same messages with marks around every control token in their strings."""
    if isinstance(value, str):
        return control.sub(f"{QUOTE}\\g<0>{UNQUOTE}", MARKS.sub("", value))
    if isinstance(value, dict):
        return {_quoted(name, control): _quoted(x, control) for name, x in value.items()}
    return [_quoted(x, control) for x in value] if isinstance(value, list) else value


def quote(messages: Sequence[Any], tokenizer: Tokenizer, *, escape: bool) -> list:
    """Messages, tools or texts in which a control token is marked as text; without `escape` it is a ValueError."""
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


def prompt(template: str, messages: Sequence[Message], tokenizer: Tokenizer, *, tools: list | None = None) -> list[int]:
    """The tokens that ask for the assistant's answer to `messages`, which are text whatever they spell, as are tools."""
    quoted, render = _quoted_template(template, messages, tokenizer, tools, True)
    return _tokens(render(quoted, prompt=True), tokenizer)[0]


def plain(before: str, answer: str, tokenizer: Tokenizer, *, escape: bool = False) -> Sample:
    """A prompt and its completion without a template: what starts a text, then both texts as one, as `generate` feeds them.

    A token that reaches from the prompt into the completion is the completion's, as in TRL.
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
    """The conversation as one sample: the ids of transformers' `apply_chat_template`, and what the assistant wrote of them.

    The template's {% generation %} marks say what that is. Without marks it is what the rendering gains from the
    generation prompt before a turn to the turn's end; a turn that the whole conversation shows otherwise has mask 0.
    What ends a turn is the assistant's, too. first: turns before this message have mask 0. last: the last turn alone.
    ValueError for what the template refuses, and for a control token in a message unless `escape`.
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
    """The conversation as training reads it: one sample, or one for each of the assistant's turns.

    Templates such as Qwen3's write a turn otherwise once another follows (without its reasoning). The model never
    generates that form, so each turn then gets the conversation up to it as a sample of its own. first, last: as in
    `encode`. ValueError also where a sample has no token to train: an empty answer whose end the template does not write.
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
    """The messages, and the template told of the tools; what either spells is text."""
    quoted = quote(messages, tokenizer, escape=escape)
    tools = None if tools is None else quote(tools, tokenizer, escape=escape)
    return quoted, _Template(template, tokenizer.names(), tools)


def _sample(marked: str, spans: Sequence[tuple[int, int]], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of a text with marks; 1.0 for the tokens that reach into one of the spans."""
    marks = [m.start() for m in MARKS.finditer(marked)]
    ids, offsets = _tokens(marked, tokenizer)
    mask = np.zeros(len(ids), np.float32)
    begins, ends = (np.array([x[n] for x in offsets], int) for n in (0, 1))
    for a, b in spans:
        first, past = (x - bisect.bisect_left(marks, x) for x in (a, b))
        mask[(begins < past) & (ends > first)] = 1.0
    return np.array(ids, np.int32), mask


def _spans(render: _Template, messages: Sequence[Message], marked: str, first: int) -> list[tuple[int, int] | None]:
    """Where in `marked` each of the assistant's turns from message `first` on stands; None for one that stands there
    otherwise than generated."""
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
        # A generation prompt may open more than the turn shows (DeepSeek-R1's <think>), but not change what came before.
        if shared < len(before) and not after[:shared].startswith(render(messages[:i])):
            raise ValueError(
                "chat template: it rewrites earlier turns for every answer, so the assistant's tokens cannot be told "
                "apart; {% generation %} marks them"
            )
        out.append((shared, len(after)) if marked.startswith(after) else None)
    return out


def _close(ids: np.ndarray, mask: np.ndarray, tokenizer: Tokenizer) -> None:
    """Adds to each of the assistant's turns that holds no stop token the control token that follows it.

    GLM's turns end where <|user|> begins, and some marks leave the end of the turn outside.
    """
    edges = np.flatnonzero(np.diff(mask, prepend=0.0, append=0.0))
    ends = set(tokenizer.stops) | set(tokenizer.control.values()) - {tokenizer.start}
    for begin, past in edges.reshape(-1, 2).tolist():
        if past < len(ids) and ids[past] in ends and not np.isin(ids[begin:past], tokenizer.stops).any():
            mask[past] = 1.0
