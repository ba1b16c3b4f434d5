"""Evaluation of a policy: its answers to held-out prompts, with rewards."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from bigmodel_jax.config import Config
from bigmodel_jax.core import files, params, processes
from bigmodel_jax.data.loader import Batch, Placement
from bigmodel_jax.data.text.prompt_data import PromptRows
from bigmodel_jax.inference.rollout import Ask, open_generator
from bigmodel_jax.training.policy import Answer, Policy

SHOWN = 8  # the number of answers that an evaluation writes down


class HeldOut:
    """An iterable over every held-out prompt, answered by the weights under evaluation.

    Each iteration answers the prompts again. `show` returns the file for an evaluation's first
    answers. With None they are not written.
    """

    def __init__(self, config: Config, mesh: Mesh):
        self.rows: PromptRows = config.data.open("validation")
        self.batch_size = config.eval.batch_size or config.train.batch_size
        self._config = config
        self.show: Callable[[], Path] | None = None
        self._place = Placement(mesh, config.parallel.rules, self.batch_size, config.data.row())
        self._policy = Policy(config, open_generator(config, mesh, self.batch_size, greedy=True))

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def made_by(self, weights: params.Tree) -> Iterator[Batch]:
        for number in range(len(self)):
            first = number * self.batch_size
            indices = range(first, min(first + self.batch_size, len(self.rows)))
            asks = [Ask(self.rows.prompts[i], self.rows.records[i], (self._config.train.seed, i)) for i in indices]
            answers = self._policy.answer(weights, asks)
            if not number and self.show and processes.first():
                self._write(answers[:SHOWN], self.show())
            yield self._batch(answers)

    def _batch(self, answers: list[Answer]) -> Batch:
        """A batch of the answers. Rows that pad it have weight 0."""
        more = self.batch_size - len(answers)
        # An evaluation counts every answer, also where the loss leaves those cut off out.
        local = self._policy.rows(answers, cut_off=True)
        local["advantages"] = np.zeros(len(answers), np.float32)
        local["stopped"] = np.array([answer.rollout.finished for answer in answers], np.float32)
        if self._policy.functions:
            local["reward"] = np.nan_to_num(self._policy.totals(answers)).astype(np.float32)
        # The compiled step needs full batches.
        local = {k: np.pad(v, ((0, more), *((0, 0),) * (v.ndim - 1))) for k, v in local.items()}
        return self._place({k: v[self._place.low : self._place.high] for k, v in local.items()})

    def _write(self, answers: list[Answer], path: Path) -> None:
        totals = self._policy.totals(answers) if self._policy.functions else [None] * len(answers)
        lines = []
        for answer, total in zip(answers, totals, strict=True):
            line = {"prompt": answer.ask.record[self._config.data.prompt_field], "response": answer.text}
            names = [name.rpartition(":")[2] for name in self._policy.functions]
            if names:
                line |= {"reward": float(total)}
            if len(names) > 1:
                line |= {"rewards": dict(zip(names, answer.rewards.tolist(), strict=True))}
            lines.append(json.dumps(line | {"finished": answer.rollout.finished}, ensure_ascii=False))
        path.parent.mkdir(exist_ok=True)
        files.replace(path, "".join(f"{line}\n" for line in lines))
