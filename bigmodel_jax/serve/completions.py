"""/v1/completions: continues a text, several texts, or lists of token ids."""

import functools
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from bigmodel_jax.inference.request import Token
from bigmodel_jax.serve import passes
from bigmodel_jax.serve.answers import Answering, Piece
from bigmodel_jax.serve.constrain import Masks
from bigmodel_jax.serve.refused import Refused
from bigmodel_jax.serve.requests import TOPS, Completion
from bigmodel_jax.serve.served import Served
from bigmodel_jax.serve.text import Spelling
from bigmodel_jax.serve.worker import Reply

MOST_PROMPTS = 256


class Completions:
    """The answers to one request, complete (`whole`) or streamed (`chunks`).

    prompts: the token ids of each prompt (`prompts_of`); masks: the constraint on the answers, or
    None.
    """

    def __init__(
        self,
        served: Served,
        answering: Answering,
        asked: Completion,
        prompts: list[Sequence[int]],
        masks: Masks | None = None,
    ):
        self._served, self._answering, self._asked = served, answering, asked
        self._model = served.known_writer(asked.model)
        self._prompts = prompts
        self._spelling = Spelling(served.tokenizer)
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
        self._reply = self._submit(masks)
        self._written = 0

    def _submit(self, masks: Masks | None) -> Reply:
        requests = []
        for prompt in self._prompts:
            room, most = self._served.room(prompt, "prompt"), self._asked.max_tokens
            if most > room:
                raise Refused(
                    f"max_tokens = {most}: with the prompt's {len(prompt)} tokens it exceeds a slot's "
                    f"{self._served.length} (--length)",
                    "max_tokens",
                    code="context_length_exceeded",
                )
            requests += self._served.requests(self._asked, prompt, most, masks)
        reply = self._answering.worker.submit(self._model, requests)
        self._answering.metrics.prompt_tokens.inc(sum(map(len, self._prompts)))
        return reply

    def close(self) -> None:
        """Gives up the texts that are not complete."""
        self._answering.worker.close(self._reply)

    async def chunks(self) -> AsyncIterator[dict]:
        """Yields the streamed chunks in OpenAI's form."""
        offsets = [0] * len(self._reply.requests)
        async for piece in self._pieces():
            choice = self._choice(piece.index, piece.text, piece.tokens, piece.finish, offsets[piece.index])
            offsets[piece.index] += len(piece.text)
            yield self._said([choice])
        if self._asked.include_usage:
            yield self._said([]) | {"usage": self._usage()}

    async def whole(self) -> dict:
        """The complete answer in OpenAI's form."""
        parts: list[list[Piece]] = [[] for _ in self._reply.requests]
        async for piece in self._pieces():
            parts[piece.index].append(piece)
        choices = [
            self._choice(i, "".join(p.text for p in own), [t for p in own for t in p.tokens], own[-1].finish)
            for i, own in enumerate(parts)
        ]
        if self._asked.echo:
            for choice in choices:
                await self._echo(choice, self._prompts[choice["index"] // self._asked.n])
        return self._said(choices) | {"usage": self._usage()}

    async def _echo(self, choice: dict, prompt: Sequence[int]) -> None:
        """Puts the prompt before its continuation, with the log probabilities of its tokens if
        asked for.
        """
        texts = [self._spelling.text(token) for token in prompt]
        before = self._served.tokenizer.decode(prompt)
        choice["text"] = before + choice["text"]
        if (found := choice["logprobs"]) is None:
            return
        weights, most = self._served.weights[self._model], self._served.length
        work = functools.partial(passes.scores, self._served.model, weights, prompt, most, TOPS)
        scores = await self._answering.worker.run(work)
        num = self._asked.logprobs
        tops = [
            {self._spelling.text(int(i)): float(p) for i, p in zip(ids[:num], best[:num], strict=True)}
            for ids, best in zip(scores.ids, scores.tops, strict=True)
        ]
        # `text_offset` counts characters from the start of the echoed text.
        starts = [sum(map(len, texts[:n])) for n in range(len(texts))]
        # The first token has no log probability, because no token precedes it.
        found["tokens"] = texts + found["tokens"]
        found["token_logprobs"] = [None, *scores.log_probs[1:].tolist(), *found["token_logprobs"]]
        found["top_logprobs"] = [None, *tops[1:], *found["top_logprobs"]]
        found["text_offset"] = starts + [sum(map(len, texts)) + at for at in found["text_offset"]]

    async def _pieces(self) -> AsyncIterator[Piece]:
        ends = () if self._asked.ignore_eos else self._served.tokenizer.stops
        async for piece in self._answering.pieces(self._reply, self._asked.stops, ends):
            self._written += len(piece.tokens)
            yield piece

    def _said(self, choices: list[dict]) -> dict:
        return self._head | {"model": self._model, "choices": choices}

    def _choice(self, index: int, text: str, tokens: list[Token], finish: str | None, offset: int = 0) -> dict:
        logprobs = None if self._asked.logprobs is None else self._log_probs(tokens, offset)
        return {"index": index, "text": text, "finish_reason": finish, "logprobs": logprobs}

    def _log_probs(self, tokens: list[Token], offset: int) -> dict[str, list]:
        texts = [self._spelling.text(token.token) for token in tokens]
        starts = [offset + sum(map(len, texts[:n])) for n in range(len(texts))]
        tops = [{self._spelling.text(i): p for i, p in token.tops[: self._asked.logprobs]} for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [token.log_prob for token in tokens],
            "top_logprobs": tops,
            "text_offset": starts,
        }

    def _usage(self) -> dict[str, int]:
        return usage(sum(map(len, self._prompts)), self._written)


def usage(prompt: int, completion: int) -> dict[str, int]:
    """OpenAI's `usage` object: numbers of prompt tokens, of generated tokens, and their sum."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def prompts_of(served: Served, given: Any) -> list[Sequence[int]]:
    """The token ids of each prompt. A long text may take a second."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not 1 <= len(given) <= MOST_PROMPTS:
        raise Refused(f"prompt has {len(given)} texts; it must have 1 to {MOST_PROMPTS}", "prompt")
    return [served.prompt(one) if isinstance(one, str) else list(one) for one in given]
