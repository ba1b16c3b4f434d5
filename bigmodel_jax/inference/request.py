"""The inputs and outputs of an engine: requests, constraints on texts, and tokens."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from bigmodel_jax.inference.sampling import Settings


class Constraint(Protocol):
    """Restricts the tokens of one text, depending on the tokens before."""

    def allowed(self) -> np.ndarray:
        """(W,) uint32: bit n of word w tells whether token 32 w + n may be the next."""
        ...

    def take(self, token: int) -> None:
        """Records that this token continues the text."""
        ...


class Request(NamedTuple):
    """A prompt (token ids) to continue by up to `max_tokens`.

    Its random draws depend only on `seed`, `nth` and the position. nth: numbers the texts drawn
    with one seed. settings, constraint: for an engine without `sample`. inputs: arrays of one row
    (1, ...) that the model reads beside tokens, such as an image that tokens stand for. adapters:
    the adapters that the text uses, for an engine with `adapters`; None: all.
    """

    prompt: Sequence[int]
    max_tokens: int
    seed: int = 0
    nth: int = 0
    settings: Settings | None = None
    constraint: Constraint | None = None
    inputs: Mapping[str, np.ndarray] | None = None
    adapters: tuple[str, ...] | None = None


class Token(NamedTuple):
    """One token of one text.

    id: the request's number. log_prob: the log-probability at temperature 1; 0 unless the engine
    has `log_probs`. finished: whether it is the text's last token. Stop tokens are returned, too.
    tops: (id, log probability) of the likeliest tokens, if the request asks for them.
    """

    id: int
    token: int
    log_prob: float
    finished: bool
    tops: tuple[tuple[int, float], ...] = ()
