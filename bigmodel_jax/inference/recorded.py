"""Mixes answers from the records into those that the policy samples, for on-policy distillation.

GKD draws once per step whether answers are the student's own (arXiv:2306.13649, algorithm 1,
lambda). Here it is drawn per answer, with the answer's own key, so that a resumed run draws the
same.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bigmodel_jax.config import Config
from bigmodel_jax.inference.rollout import Ask, Generator, Rollout


class Recorded:
    """Takes a share `data.recorded` of answers from the records. Their log-probabilities are set to
    0."""

    def __init__(self, config: Config, others: Generator):
        self._data, self._tokenizer, self._others = config.data, config.data.open_tokenizer(), others

    def generate(self, weights: Any, asks: Sequence[Ask]) -> Iterator[tuple[int, Rollout]]:
        known = [number for number, ask in enumerate(asks) if self._is_recorded(ask)]
        rest = sorted(set(range(len(asks))) - set(known))
        given = ((number, self._answer(asks[number])) for number in known)
        sampled = self._others.generate(weights, [asks[number] for number in rest]) if rest else ()
        return itertools.chain(given, ((rest[number], rollout) for number, rollout in sampled))

    def _is_recorded(self, ask: Ask) -> bool:
        return np.random.default_rng(ask.key).random() < self._data.recorded

    def _answer(self, ask: Ask) -> Rollout:
        tokens = [*self._tokenizer.encode(ask.record[self._data.completion_field]), self._tokenizer.stops[0]]
        # An answer that is cut off keeps no end token, like a sampled answer that reaches the
        # limit.
        kept = tokens[: self._data.max_tokens]
        return Rollout(kept, [0.0] * len(kept), len(kept) == len(tokens))


def with_recorded(config: Config, generator: Generator) -> Generator:
    """`generator`, with the records' answers mixed in if the config asks for it."""
    return Recorded(config, generator) if config.data.recorded else generator
