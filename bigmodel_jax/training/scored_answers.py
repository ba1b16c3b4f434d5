"""Generates answers to the prompts of an evaluation set, and scores them by text metrics."""

import json
import math
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from bigmodel_jax.config import Config
from bigmodel_jax.core import files, params, processes
from bigmodel_jax.core.precision import cast
from bigmodel_jax.data.base import lacks
from bigmodel_jax.inference.rollout import Ask, open_generator
from bigmodel_jax.metrics import texts

SHOWN = 8  # the number of answers that an evaluation writes down


class ScoredAnswers:
    """One answer to every prompt of `config.data`.

    The answers depend only on the weights, so a resumed run gets the same ones.
    """

    def __init__(self, config: Config, mesh: Mesh):
        self._config, self._set = config, config.eval.sets[0]
        self._rows = config.data.open("validation")
        self._tokenizer = config.data.open_tokenizer()
        self._model = config.make_model()
        self._check_references()
        self._generator = open_generator(config, mesh, len(self._rows), greedy=True)

    def evaluate(self, weights: params.Tree, show: Path | None = None) -> dict[str, float]:
        """{"eval/METRIC": number}. Some answers are written to the file `show`.

        Raises a one-line ValueError for a metric that returns no finite number.
        """
        answers = self._answers(cast(weights, self._config.precision.compute))
        # Only one process computes the metrics, because they may be slow or keep state.
        scored = processes.from_first(json.dumps(self._scores(answers) if processes.first() else {}))
        found = json.loads(scored)
        if "error" in found:
            raise ValueError(found["error"])
        if show is not None and processes.first():
            self._write(answers, show)
        return {f"eval/{name}": value for name, value in found.items()}

    def _answers(self, weights: params.Tree) -> list[str]:
        seed = self._config.train.seed
        asks = [
            Ask(self._prompt(tokens), record, (seed, i), self._rows.inputs(i))
            for i, (tokens, record) in enumerate(zip(self._rows.prompts, self._rows.records, strict=True))
        ]
        answers = [""] * len(asks)
        for number, rollout in self._generator.generate(weights, asks):
            # Metrics compare texts, and an end token is none.
            answers[number] = self._tokenizer.decode([t for t in rollout.tokens if t not in self._tokenizer.stops])
        return answers

    def _prompt(self, tokens: list[int]) -> list[int]:
        """An encoder gets the text and an end token. A decoder gets a start token and the text."""
        if not self._model.decoder_starts:
            return tokens
        ids = tokens[0 if self._config.data.template_path else 1 :]
        return self._model.encoded(ids, self._tokenizer.separator)

    # ---- references and scores

    def _check_references(self) -> None:
        field = self._set.answer_field
        for i, record in enumerate(self._rows.records if field else []):
            if wrong := lacks(record, field):
                raise ValueError(f"answer_field: prompt {i} has {wrong}")
            if not record[field] and record[field] != "":
                raise ValueError(f"answer_field: prompt {i} has no answer in its {field}")

    def _references(self) -> list[list[Any]]:
        field = self._set.answer_field
        found = [record[field] if field else [record] for record in self._rows.records]
        return [list(one) if isinstance(one, list | tuple) else [one] for one in found]

    def _scores(self, answers: list[str]) -> dict[str, Any]:
        found = {}
        try:
            for name in self._set.metrics:
                found |= texts.find_text("metrics", name)(answers, self._references())
            _check_finite(found)
        except ValueError as error:
            return {"error": str(error)}
        return found

    def _write(self, answers: list[str], path: Path) -> None:
        lines = []
        for i, (text, record) in enumerate(list(zip(answers, self._rows.records, strict=True))[:SHOWN]):
            line = {"prompt": record[self._config.data.prompt_field], "response": text}
            picture = self._rows.picture(i)
            if picture:
                line |= {"picture": picture, "answer": self._references()[i][0]}
            lines.append(json.dumps(line, ensure_ascii=False))
        path.parent.mkdir(exist_ok=True)
        files.replace(path, "".join(f"{line}\n" for line in lines))


def _check_finite(found: dict[str, float]) -> None:
    for name, value in found.items():
        if not math.isfinite(value):
            raise ValueError(f"metrics: {name} is {value}; it must be a finite number")
