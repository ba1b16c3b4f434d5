"""Batches that the policy generates: prompts in a fixed order, sampled answers, and advantages.

All random draws are a function of (seed, step, weights), so a killed run repeats the same answers.
If answers serve several steps, a save between two of these steps contains the answers.
"""

import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bigmodel_jax.config import Config
from bigmodel_jax.core import params, precision, processes, sharding
from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.data import shuffle
from bigmodel_jax.data.experience import packed, unpacked
from bigmodel_jax.data.loader import Batch, Placement
from bigmodel_jax.data.text.prompt_data import PromptRows
from bigmodel_jax.inference.recorded import with_recorded
from bigmodel_jax.inference.rollout import Ask, open_generator
from bigmodel_jax.training.held_out import HeldOut
from bigmodel_jax.training.policy import Answer, Policy
from bigmodel_jax.training.rollout_arrays import log_prob_fields, wanted
from bigmodel_jax.training.state import TrainState, computed

log = logging.getLogger("bigmodel_jax")

STRIDE = 0x9E3779B9  # difference between the seeds of two attempts at one rollout


class Made(NamedTuple):
    """A rollout: its number, its batch on the mesh, and the metrics recorded of it."""

    number: int
    batch: Batch
    sums: dict[str, Mean]


class Rollouts:
    """An `Experience` of answers by the current weights, renewed every
    `updates_per_rollout` steps.
    """

    phase = "rollout"

    def __init__(self, config: Config, mesh: Mesh):
        self._config, self._data, size = config, config.data, config.train.batch_size
        self.rows: PromptRows = config.data.open("train")
        self._policy = Policy(config, with_recorded(config, open_generator(config, mesh, size)))
        row = config.data.row()
        kept = log_prob_fields(config)
        self._place = Placement(mesh, config.parallel.rules, size, row)
        self._place_again = Placement(mesh, config.parallel.rules, size, row | kept)
        self._log_probs = make_log_probs(config, mesh) if kept else None
        self._step, self._made, self._constants = 0, None, {}
        self.held_out = HeldOut(config, mesh)

    def enter(self, run_dir: Path, constants: params.Tree) -> None:
        self._constants = constants
        self.held_out.show = lambda: run_dir / "samples" / f"{self._step:08d}.jsonl"

    def prefetch(self) -> None:
        """Does nothing, because a rollout needs the weights."""

    def wait(self, seconds: float) -> bool:
        """Returns False if the next step needs a new rollout. A rollout needs the weights after the
        step before, so nothing can be prepared.
        """
        if self._made is not None and self._made.number == self._number():
            return True
        time.sleep(seconds)
        return False

    def _number(self) -> int:
        """The number of the rollout that the next step trains on."""
        return self._step // self._data.updates_per_rollout

    def next(self, state: TrainState) -> Batch:
        """The batch of the next step.

        Raises a one-line ValueError if a reward fails. The caller still has the trained weights.
        """
        number = self._number()
        if self._made is None or self._made.number != number:
            self._made = self._make(number, params.merge(state.params, state.frozen, self._constants))
        self._step += 1
        return self._made.batch

    def measured(self) -> dict[str, Mean]:
        return self._made.sums if self._made else {}

    # ---- position in the data

    def position(self) -> dict[str, Any]:
        """The position, with the answers if the next step trains on them again."""
        found: dict[str, Any] = {"rollout_step": self._step}
        if self._step % self._data.updates_per_rollout:
            found["rollout"] = packed(sharding.to_host(self._made.batch))
            found["rollout_sums"] = {k: [float(m.total), float(m.count)] for k, m in self._made.sums.items()}
        return found

    def seek(self, step: int, position: dict[str, Any] | None = None) -> None:
        self._step = step if position is None else int(position["rollout_step"])
        number = self._number()
        if self._made and self._made.number == number:
            return  # the step was compiled with this batch, which is still valid
        self._made = None
        if position and "rollout" in position:
            sums = {k: Mean(*map(np.float32, pair)) for k, pair in position["rollout_sums"].items()}
            local = {k: v[self._place.low : self._place.high] for k, v in unpacked(position["rollout"]).items()}
            self._made = Made(number, self._place_again(local), sums)

    # ---- one rollout

    def _make(self, number: int, weights: params.Tree) -> Made:
        began = time.perf_counter()
        groups = self._policy_groups(number, weights)
        answers = [answer for group in groups for answer in group]
        local = self._policy.rows(answers, self._config.objective.judging().cut_off)
        local["advantages"], sums = self._advantages(groups)
        seconds = np.float32(time.perf_counter() - began)
        sums |= {"rollout_seconds": Mean(seconds, np.float32(1)), **lengths(answers)}
        batch = self._place({k: v[self._place.low : self._place.high] for k, v in local.items()})
        if self._log_probs:
            batch = batch | self._log_probs(weights, batch)
        return Made(number, batch, sums)

    def _policy_groups(self, number: int, weights: params.Tree) -> list[list[Answer]]:
        """The groups of a rollout. Groups whose rewards are all equal teach nothing and may be
        replaced.
        """
        num = self._config.train.batch_size // self._data.group
        groups = self._answered(number, weights, 0, list(range(num)))
        for attempt in range(1, self._config.objective.judging().resamples + 1):
            places = [place for place, group in enumerate(groups) if not spread(self._policy.totals(group))]
            if not places:
                break
            for place, group in zip(places, self._answered(number, weights, attempt, places), strict=True):
                groups[place] = group
        return groups

    def _answered(self, number: int, weights, attempt: int, places: list[int]) -> list[list[Answer]]:
        """The group for each place of the rollout, in attempt number `attempt`."""
        size, group, seed = self._config.train.batch_size, self._data.group, self._config.train.seed
        # Each attempt has its own order of prompts, so replacements differ.
        start = shuffle.start([seed, attempt] if attempt else seed)
        examples = number * (size // group) + np.array(places)
        asks = []
        for place, row in zip(places, shuffle.order(start, examples, len(self.rows)), strict=True):
            for nth in range(group):
                # Two uint32 words: the seed of the attempt, and the number of the answer in the
                # run.
                key = (seed + attempt * STRIDE) % 2**32, (number * size + place * group + nth) % 2**32
                asks.append(Ask(self.rows.prompts[row], self.rows.records[row], key))
        answers = self._policy.answer(weights, asks)
        return [answers[i : i + group] for i in range(0, len(answers), group)]

    def _advantages(self, groups: list[list[Answer]]) -> tuple[np.ndarray, dict[str, Mean]]:
        """Advantages (B,) and metrics of the rewards; zeros for an objective without rewards."""
        if not self._policy.functions:
            return np.zeros(sum(map(len, groups)), np.float32), {}
        totals = np.stack([self._policy.totals(group) for group in groups])
        alike = [not spread(one) for one in totals]
        spreads = [np.nanstd(one) if np.isfinite(one).any() else 0.0 for one in totals]
        sums = {"reward": mean(totals), "reward_spread": mean(spreads), "zero_spread_groups": mean(alike)}
        if len(self._policy.functions) > 1:
            given = np.stack([answer.rewards for group in groups for answer in group])
            names = [name.rpartition(":")[2] for name in self._policy.functions]
            sums |= {f"reward_{name}": mean(column) for name, column in zip(names, given.T, strict=True)}
        return self._config.objective.advantages(totals).reshape(-1), sums


def spread(rewards: np.ndarray) -> bool:
    """Whether at least two finite rewards differ."""
    known = rewards[np.isfinite(rewards)]
    return len(known) > 0 and bool(known.max() > known.min())


def mean(values: Any) -> Mean:
    """The mean of the finite values."""
    values = np.asarray(values, np.float64)
    known = values[np.isfinite(values)]
    return Mean(np.float32(known.sum()), np.float32(known.size))


def lengths(answers: list[Answer]) -> dict[str, Mean]:
    """The mean length of the answers in tokens, and the share that ended by themselves."""
    sizes = [len(answer.rollout.tokens) for answer in answers]
    return {"response_length": mean(sizes), "stopped": mean([answer.rollout.finished for answer in answers])}


# ---------------------------------------------------------------- log-probabilities


def make_log_probs(config: Config, mesh: Mesh):
    """Compiles (parameters, batch) -> {name: (B, T)} for `wanted`, as the train step
    computes them.
    """
    model, objective, names = config.make_model(), config.objective, wanted(config)

    def run(weights, batch):
        with sharding.use(mesh, config.parallel.rules, config.parallel), precision.use(config.precision):
            weights = computed(config, model.spec, weights)
            inputs, _ = objective.inputs(batch, None)
            trees = {"old_log_probs": lambda: weights, "reference_log_probs": lambda: objective.reference_of(weights)}
            return {name: objective.log_probs(model.apply(trees[name](), inputs), batch) for name in names}

    row = sharding.batch_sharding(mesh, config.parallel.rules, ("seq",))
    return processes.compiled_together(jax.jit(run, out_shardings=dict.fromkeys(names, row)))


# ---------------------------------------------------------------- the batches of a run


def open_rollouts(config: Config, mesh: Mesh) -> tuple[Rollouts, HeldOut]:
    """The training and validation batches of a run on prompts."""
    batches = Rollouts(config, mesh)
    return batches, batches.held_out
