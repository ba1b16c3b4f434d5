"""/v1/chat/completions: answers to messages, with the run's chat template."""

import dataclasses
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from bigmodel_jax.data.text import chat as chat_format
from bigmodel_jax.data.text.chat_records import CALLS
from bigmodel_jax.inference.request import Token
from bigmodel_jax.serve.answers import Answering, Piece
from bigmodel_jax.serve.completions import usage
from bigmodel_jax.serve.constrain import Masks
from bigmodel_jax.serve.parts import THINK, Parts, called
from bigmodel_jax.serve.refused import Refused
from bigmodel_jax.serve.requests import Chat
from bigmodel_jax.serve.served import Served
from bigmodel_jax.serve.text import Spelling

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_MESSAGES = 2048


class Answers:
    """The answers to one request, complete (`whole`) or streamed (`chunks`).

    prompt: the conversation's tokens (`prompt_of`); masks: the constraint on the answers, or None.
    """

    def __init__(
        self, served: Served, answering: Answering, asked: Chat, prompt: list[int], masks: Masks | None = None
    ):
        self._served, self._answering, self._asked = served, answering, asked
        self._model, self._prompt = asked.model, prompt
        self._spelling = Spelling(served.tokenizer)
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self._model}
        room = served.room(prompt, "messages")
        most = asked.most or room
        if most > room:
            field = "max_completion_tokens" if asked.max_completion_tokens else "max_tokens"
            raise Refused(
                f"{field} = {most}: with the messages' {len(prompt)} tokens it exceeds a slot's "
                f"{served.length} (--length)",
                field,
                code="context_length_exceeded",
            )
        self._reply = answering.worker.submit(self._model, served.requests(asked, prompt, most, masks))
        answering.metrics.prompt_tokens.inc(len(prompt))
        self._written = 0
        self._messages = [Message(_parts(served, asked, prompt)) for _ in self._reply.requests]

    def close(self) -> None:
        """Gives up the texts that are not complete."""
        self._answering.worker.close(self._reply)

    async def chunks(self) -> AsyncIterator[dict]:
        """Yields the streamed chunks in OpenAI's form."""
        begun = set()
        async for piece in self._pieces():
            # OpenAI's first chunk of a text has the role and no content.
            if piece.index not in begun:
                begun.add(piece.index)
                yield self._chunk([_delta(piece.index, {"role": "assistant", "content": ""})])
            message = self._messages[piece.index]
            delta = message.add(piece.text, last=piece.finish is not None)
            finish = message.finish(piece.finish)
            # Log-probabilities of a token must be sent even where its text is held back.
            if delta or finish or self._asked.tops is not None:
                yield self._chunk([_delta(piece.index, delta, finish, self._log_probs(piece.tokens))])
        if self._asked.include_usage:
            yield self._chunk([]) | {"usage": usage(len(self._prompt), self._written)}

    async def whole(self) -> dict:
        """The complete answer in OpenAI's form."""
        parts: list[list[Piece]] = [[] for _ in self._reply.requests]
        async for piece in self._pieces():
            parts[piece.index].append(piece)
        choices = [self._choice(index, own) for index, own in enumerate(parts)]
        return {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage(len(self._prompt), self._written),
        }

    async def _pieces(self) -> AsyncIterator[Piece]:
        ends = () if self._asked.ignore_eos else self._served.tokenizer.stops
        async for piece in self._answering.pieces(self._reply, self._asked.stops, ends):
            self._written += len(piece.tokens)
            yield piece

    def _chunk(self, choices: list[dict]) -> dict:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices}

    def _choice(self, index: int, parts: list[Piece]) -> dict:
        message = self._messages[index]
        message.add("".join(piece.text for piece in parts), last=True)
        log_probs = self._log_probs([token for piece in parts for token in piece.tokens])
        finish = message.finish(parts[-1].finish)
        return {"index": index, "message": message.whole(), "finish_reason": finish, "logprobs": log_probs}

    def _log_probs(self, tokens: list[Token]) -> dict | None:
        if self._asked.tops is None:
            return None
        rows = []
        for token in tokens:
            tops = [self._row(i, p) for i, p in token.tops[: self._asked.tops]]
            rows.append(self._row(token.token, token.log_prob) | {"top_logprobs": tops})
        return {"content": rows, "refusal": None}

    def _row(self, token: int, log_prob: float) -> dict:
        spelled = self._spelling.bytes(token)
        return {"token": self._spelling.text(token), "logprob": log_prob, "bytes": list(spelled)}


@dataclasses.dataclass
class Message:
    """The assistant's message while it is written."""

    parts: Parts
    content: str = ""
    reasoning: str = ""
    calls: list[dict] = dataclasses.field(default_factory=list)

    def add(self, text: str, *, last: bool) -> dict:
        """Adds text and returns the `delta` of its chunk.

        If the text between call tags is not a valid call, it counts as content.
        """
        before = len(self.content), len(self.reasoning), len(self.calls)
        for kind, part in self.parts.add(text, last=last):
            call = called(part) if kind == "call" else None
            if call:
                self.calls.append(call)
            elif kind == "reasoning":
                self.reasoning += part
            elif not self.calls or part.strip():  # between two calls stands only a line break
                self.content += part
        calls = [{"index": n, **call} for n, call in enumerate(self.calls)][before[2] :]
        found = {"content": self.content[before[0] :], "reasoning_content": self.reasoning[before[1] :]}
        return {name: value for name, value in (found | {"tool_calls": calls}).items() if value}

    def finish(self, reason: str | None) -> str | None:
        """The `finish_reason` of the message: "tool_calls" if it ended by itself with calls."""
        return "tool_calls" if reason == "stop" and self.calls else reason

    def whole(self) -> dict:
        """The complete message in OpenAI's form."""
        said = {"role": "assistant", "content": self.content or (None if self.calls else ""), "refusal": None}
        if self.reasoning:
            said["reasoning_content"] = self.reasoning
        return said | {"tool_calls": self.calls} if self.calls else said


def _parts(served: Served, asked: Chat, prompt: list[int]) -> Parts:
    """The splitter of an answer: it looks for reasoning if the template knows it, and for calls of
    tools.
    """
    thinks = THINK[0] in served.template
    kinds = (("reasoning",) if thinks else ()) + (("call",) if asked.choice != "none" else ())
    # A template may end the prompt with <think>, so that the answer begins inside reasoning.
    opened = thinks and served.tokenizer.decode(prompt[-8:]).rstrip().endswith(THINK[0])
    return Parts(kinds, "reasoning" if opened else "content")


def _delta(index: int, delta: dict, finish: str | None = None, log_probs: dict | None = None) -> dict:
    return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": log_probs}


def prompt_of(served: Served, asked: Chat) -> list[int]:
    """The conversation's tokens.

    The template is rendered in another process, so this may take a moment.
    """
    if not served.template:
        raise Refused(
            f"{served.names[0]} has no chat template, so it takes no messages; /v1/completions continues texts"
        )
    if len(asked.messages) > MOST_MESSAGES:
        raise Refused(f"messages has {len(asked.messages)} messages; at most {MOST_MESSAGES} are allowed", "messages")
    messages = [_message(message, n) for n, message in enumerate(asked.messages)]
    if asked.tools and "tools" not in served.template:
        raise Refused(f"{served.names[0]}'s chat template knows of no tools; leave tools out", "tools")
    for name in CALLS:
        # Without this, the template would write an empty answer.
        if name not in served.template and any(message.get(name) for message in messages):
            raise Refused(f"{served.names[0]}'s chat template writes no {name}; leave them out", "messages")
    shown = list(asked.tools) if asked.choice != "none" else None
    try:
        with served.encoder() as tokenizer:
            return chat_format.prompt(served.template, messages, tokenizer, tools=shown)
    except ValueError as error:
        raise Refused(str(error), "messages") from None


def _message(message: dict, n: int) -> dict:
    """A message in the form that chat templates expect, with its text as one string."""
    where, role = f"messages[{n}]", message.get("role")
    if role not in ROLES:
        raise Refused(f"{where}.role = {role!r}; allowed: {', '.join(ROLES)}", f"{where}.role")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    calls = message.get("tool_calls")
    if calls is not None:
        _check_calls(calls, where)
    if not isinstance(content, str) and not (content is None and calls and role == "assistant"):
        raise Refused(f"{where}.content is {type(content).__name__}; it must be a text", f"{where}.content")
    # Chat templates do not know OpenAI's newer name of this role.
    role = "system" if role == "developer" else role
    return {name: x for name, x in message.items() if x is not None} | {"role": role, "content": content or ""}


def _check_calls(calls: Any, where: str) -> None:
    """Raises Refused where the calls of an earlier answer do not have OpenAI's form."""
    if not isinstance(calls, list):
        raise Refused(f"{where}.tool_calls is {type(calls).__name__}; it must be a list", f"{where}.tool_calls")
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Refused(f"{where}.tool_calls holds what is no call of a function", f"{where}.tool_calls")


def _part(part: object, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise Refused(f"{where}.content holds a part that is no text; this model reads text alone", f"{where}.content")
    return part["text"]
