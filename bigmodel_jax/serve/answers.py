"""Turns the tokens of a reply into pieces of text until each of its texts has ended."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer
from bigmodel_jax.inference.request import Token
from bigmodel_jax.serve.metrics import Metrics
from bigmodel_jax.serve.refused import Refused, too_long
from bigmodel_jax.serve.text import Pieces, Stops
from bigmodel_jax.serve.worker import Reply, Worker


class Piece(NamedTuple):
    """A piece of one text.

    index: which text of the reply; tokens: the tokens since the text's last piece; finish: why the
    text has ended, or None while it goes on.
    """

    index: int
    text: str
    tokens: list[Token]
    finish: str | None = None


@dataclasses.dataclass
class Writing:
    """One text that is being written. ends: the tokens that end it."""

    pieces: Pieces
    stops: Stops
    ends: frozenset[int]
    tokens: list[Token] = dataclasses.field(default_factory=list)

    def add(self, index: int, token: Token) -> Piece | None:
        """The text's next piece, or None where the token gives no text yet."""
        self.tokens.append(token)
        ended = token.finished and token.token in self.ends
        text = self.stops.add("" if ended else self.pieces.add(token.token))
        finish = "stop" if ended or self.stops.found else "length" if token.finished else None
        # No token follows, so the text that was held back, as part of a character or of a stop
        # string, is given out.
        if token.finished and not self.stops.found:
            text += self.stops.add(self.pieces.rest())
            finish = "stop" if self.stops.found else finish
            text += self.stops.rest()
        if not text and finish is None:
            return None
        tokens, self.tokens = self.tokens, []
        return Piece(index, text, tokens, finish)


class Answering(NamedTuple):
    """The parts that make answers. seconds: an answer's time limit."""

    worker: Worker
    tokenizer: Tokenizer
    seconds: float
    metrics: Metrics

    async def pieces(self, reply: Reply, stops: Sequence[str], ends: Sequence[int]) -> AsyncIterator[Piece]:
        """Yields the pieces of every text of the reply.

        stops: strings that end a text; ends: tokens that end a text. The slots of unfinished texts
        are freed in every case, also after an error.
        """
        texts = [Writing(Pieces(self.tokenizer), Stops(stops), frozenset(ends)) for _ in reply.requests]
        left, began, last = set(range(len(texts))), time.monotonic(), None
        try:
            while left:
                index, token = await self._next(reply, began)
                # The engine may have drawn these tokens before it learnt that the text is closed.
                if index not in left:  # these tokens were on their way when a stop string ended the text
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
        """(text, token) from the reply's queue.

        Raises Refused once the answer has taken too long.
        """
        try:
            async with asyncio.timeout(began + self.seconds - time.monotonic()):
                found = await reply.queue.get()
        except TimeoutError:
            raise too_long(self.seconds) from None
        if isinstance(found, Exception):
            raise found
        return found


def _check_held(reply: Reply, index: int) -> None:
    """Raises Refused if the constraint on the text has exceeded one of its limits of work."""
    held = reply.requests[index].constraint
    if held is not None and held.error:
        raise Refused(f"the answer could not be held to its form any longer: {held.error}", status=422)
