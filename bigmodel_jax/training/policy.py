"""Asks the policy for answers with the current weights, and scores them by reward functions."""

import json
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from bigmodel_jax.config import Config
from bigmodel_jax.core import params, processes, user_code
from bigmodel_jax.core.precision import cast
from bigmodel_jax.data.text.prompt_data import collate
from bigmodel_jax.inference.rollout import Ask, Generator, Rollout
from bigmodel_jax.training import rewards
from bigmodel_jax.training.rewards import Sample

log = logging.getLogger("bigmodel_jax")


class Answer(NamedTuple):
    """An answer. `rewards` has the value of each reward function, NaN for a failed call."""

    ask: Ask
    rollout: Rollout
    text: str
    rewards: np.ndarray


def _check(rollout: Rollout, room: int) -> None:
    """Raises ValueError for an answer that makes no row of a batch; room: the most tokens."""
    own = rollout.tokens if rollout.own is None else rollout.own
    size, *others = map(len, (rollout.tokens, rollout.log_probs, own))
    if others != [size, size]:
        raise ValueError(
            f"data.rollouts: an answer has {size} tokens, {others[0]} log_probs and {others[1]} entries of own"
        )
    if size > room:
        raise ValueError(f"data.rollouts: an answer has {size} tokens, and its row has room for {room}")


class Policy:
    """Asks a generator, and scores finished answers while others are still being generated."""

    def __init__(self, config: Config, generator: Generator):
        self._config, self._generator = config, generator
        self._tokenizer = config.data.open_tokenizer()
        self._judging = config.objective.judging()
        self.functions = self._judging.functions
        self._judges = rewards.judges(self.functions, self._judging.seconds) if self.functions else None

    def answer(self, weights: params.Tree, asks: list[Ask]) -> list[Answer]:
        """The answers in the order of `asks`.

        Raises a one-line ValueError if more rewards fail than `Judging.errors` allows.
        """
        # The cast comes once here, not once in each program of the generator.
        weights = self._compute(weights)
        found: list[Any] = [None] * len(asks)
        for number, rollout in self._rollouts(weights, asks):
            text = self._tokenizer.decode([t for t in rollout.tokens if t not in self._tokenizer.stops])
            sample = Sample(asks[number].record[self._config.data.prompt_field], text, asks[number].record)
            # The reward functions run while the generator goes on.
            scored = self._judges.submit(sample) if self._judges and processes.first() else None
            found[number] = rollout, sample, scored
        if None in found:
            raise ValueError(f"data.rollouts: {found.count(None)} of {len(asks)} prompts got no answer")
        # Only one process calls the functions, because they may be slow or keep state.
        given = [scored() if scored else [] for _, _, scored in found]
        if self._judges:
            given = json.loads(processes.from_first(json.dumps(given)))
            self._check(given, [sample for _, sample, _ in found])
        numbers = [np.array([v if isinstance(v, float | int) else np.nan for v in values]) for values in given]
        return [Answer(a, r, s.response, n) for a, (r, s, _), n in zip(asks, found, numbers, strict=True)]

    def _rollouts(self, weights: params.Tree, asks: list[Ask]) -> Iterator[tuple[int, Rollout]]:
        """The generator's answers.

        Raises a one-line ValueError for whatever a user's generator does wrong.
        """
        name = self._config.data.rollouts
        try:
            for number, rollout in self._generator.generate(weights, asks):
                _check(rollout, self._config.data.seq_len + 1 - len(asks[number].prompt))
                yield number, rollout
        except Exception as error:
            if not name or isinstance(error, ValueError):
                raise
            raise ValueError(f"data.rollouts: {name} raised {user_code.described(error)}") from error

    def _compute(self, weights: params.Tree) -> params.Tree:
        return cast(weights, self._config.precision.compute)

    def _check(self, given: list[list[float | str]], samples: list[Sample]) -> None:
        wrong = [rewards.failure(self.functions, *one) for one in zip(given, samples, strict=True)]
        wrong = [line for line in wrong if line]
        most = self._judging.errors
        if len(wrong) > most:
            before = f" ({most} others of this rollout were left out)" if most else ""
            raise ValueError(f"{wrong[most]}{before}; objective.reward_errors = {most}")
        for line in wrong:
            log.warning("left out: %s", line)

    def totals(self, answers: list[Answer]) -> np.ndarray:
        """The total reward of each answer, (len(answers),); NaN where a function failed."""
        return self._config.objective.total(np.stack([answer.rewards for answer in answers]))

    def rows(self, answers: list[Answer], cut_off: bool) -> dict[str, np.ndarray]:
        """The answers as arrays of a batch.

        An answer without a reward gets no loss weight. An answer that was cut off gets none either,
        unless `cut_off`.
        """
        own = []
        for _, rollout, _, scored in answers:
            counts = not np.isnan(scored).any() and (rollout.finished or cut_off)
            mask = rollout.own if rollout.own is not None else [1] * len(rollout.tokens)
            own.append(mask if counts else [0] * len(rollout.tokens))
        prompts = [list(a.ask.prompt) for a in answers]
        tokens, log_probs = ([getattr(a.rollout, name) for a in answers] for name in ("tokens", "log_probs"))
        return collate(prompts, tokens, own, log_probs, self._config.data.seq_len)
