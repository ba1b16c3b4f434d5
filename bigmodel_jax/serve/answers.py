"""The texts of a reply as they are written: tokens become pieces of text, until each text has ended."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer
from bigmodel_jax.inference.engine import Token
from bigmodel_jax.serve.metrics import Metrics
from bigmodel_jax.serve.refused import Refused
from bigmodel_jax.serve.text import Pieces, Stops
from bigmodel_jax.serve.worker import Reply, Worker


class Piece(NamedTuple):
    """index: which text. tokens: those that have come since the text's last piece. finish: why the text has ended."""

    index: int
    text: str
    tokens: list[Token]
    finish: str | None = None


@dataclasses.dataclass
class Writing:
    """One text that is being written."""

    pieces: Pieces
    stops: Stops
    ends: frozenset[int]
    tokens: list[Token] = dataclasses.field(default_factory=list)

    def add(self, index: int, token: Token) -> Piece | None:
        """The next piece of the text; None where there is nothing to give out yet."""
        self.tokens.append(token)
        ended = token.finished and token.token in self.ends
        text = self.stops.add("" if ended else self.pieces.add(token.token))
        finish = "stop" if ended or self.stops.found else "length" if token.finished else None
        if token.finished and not self.stops.found:
            text += self.stops.add(self.pieces.rest())
            finish = "stop" if self.stops.found else finish
            text += self.stops.rest()
        if not text and finish is None:
            return None
        tokens, self.tokens = self.tokens, []
        return Piece(index, text, tokens, finish)


class Answering(NamedTuple):
    """What answers are made with: the worker, the tokenizer, how long one may take, and what is counted."""

    worker: Worker
    tokenizer: Tokenizer
    seconds: float
    metrics: Metrics

    async def pieces(self, reply: Reply, stops: Sequence[str], ends: Sequence[int]) -> AsyncIterator[Piece]:
        """Every text of the reply, piece by piece; whatever ends this, the slots of what has not ended are free."""
        texts = [Writing(Pieces(self.tokenizer), Stops(stops), frozenset(ends)) for _ in reply.requests]
        left, began, last = set(range(len(texts))), time.monotonic(), None
        try:
            while left:
                index, token = await self._next(reply, began)
                if index not in left:  # tokens that were on their way when a stop string ended the text
                    continue
                last = self.metrics.token(began, last)
                piece = texts[index].add(index, token)
                if piece is None:
                    continue
                if piece.finish:
                    _check_held(reply, index)
                    left.discard(index)
                    self.worker.close(reply, index)
                yield piece
        finally:
            self.worker.close(reply)

    async def _next(self, reply: Reply, began: float) -> tuple[int, Token]:
        try:
            async with asyncio.timeout(began + self.seconds - time.monotonic()):
                found = await reply.queue.get()
        except TimeoutError:
            raise Refused(
                f"the answer took longer than {self.seconds:g} seconds (--request_seconds)", status=504
            ) from None
        if isinstance(found, Exception):
            raise found
        return found


def _check_held(reply: Reply, index: int) -> None:
    """Refused where the form that the text was held to became too much work on the way."""
    held = reply.requests[index].constraint
    if held is not None and held.error:
        raise Refused(f"the answer could not be held to its form any longer: {held.error}", status=422)
