"""Log-likelihoods of continuations of token sequences, batched on a mesh.

Shapes: B batch rows, T tokens per row. T is padded to one of few lengths, to limit compilations.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bigmodel_jax.config import Config
from bigmodel_jax.core import params, processes, sharding
from bigmodel_jax.data.fields import Field
from bigmodel_jax.data.loader import Placement
from bigmodel_jax.inference.prompts import bucket
from bigmodel_jax.objectives.cross_entropy import of_tokens
from bigmodel_jax.training.state import computed

log = logging.getLogger("bigmodel_jax")


class Scored(NamedTuple):
    """The score of one continuation.

    log_prob: its log-probability in nats. greedy: whether each of its tokens is the likeliest one.
    """

    log_prob: float
    greedy: bool


class Scorer:
    """Scores (context, continuation) pairs of token ids.

    Contexts that are too long lose their start.
    """

    def __init__(self, config: Config, mesh: Mesh, weights: params.Tree):
        self._mesh, self._rules, self._weights = mesh, config.parallel.rules, weights
        self.batch_size = config.eval.batch_size or config.train.batch_size
        self.most = config.model.max_seq_len
        self._step = make_step(config, mesh)

    def __call__(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Scored]:
        """The scores, in the order of the pairs.

        Context and continuation have at least one token each. If a continuation is longer than the
        model's context, only its last tokens are scored.
        """
        say_truncated([len(context) + len(continuation) for context, continuation in pairs], self.most + 1)
        rows = [_row(context, continuation, self.most) for context, continuation in pairs]
        found: list[Scored | None] = [None] * len(rows)
        # The longest pairs come first, so that the rows of a batch have similar lengths.
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i][0]), i))
        for numbers in _batches(order, self.batch_size):
            sums, greedy = self._batch([rows[i] for i in numbers])
            for place, number in enumerate(numbers):
                found[number] = Scored(float(sums[place]), bool(greedy[place]))
        return found

    def _batch(self, rows: list[tuple[list[int], int]]) -> tuple[np.ndarray, np.ndarray]:
        length = min(bucket(len(rows[0][0]) - 1), self.most)
        local = _collate(rows, self.batch_size, length)
        place = self._placement(length)
        batch = place({name: x[place.low : place.high] for name, x in local.items()})
        return sharding.to_host(self._step(self._weights, batch))

    @functools.cache  # noqa: B019 - lives as long as its scorer
    def _placement(self, length: int) -> Placement:
        row = {name: Field((length,), "int32", ("seq",)) for name in ("tokens", "targets", "positions", "segment_ids")}
        row["weights"] = Field((length,), "float32", ("seq",))
        return Placement(self._mesh, self._rules, self.batch_size, row)


def make_step(config: Config, mesh: Mesh) -> Callable:
    """A jitted function (weights, batch) -> (log-probabilities (B,), greedy (B,)).

    Only targets of weight 1 count; greedy says whether each of them is the likeliest token.
    """
    model = config.make_model()

    def step(weights, batch):
        with sharding.use(mesh, config.parallel.rules, config.parallel):
            weights = computed(config, model.spec, weights)
            out = model.apply(weights, batch, rng=None, train=False)
            # The loss's code computes large vocabularies in blocks, without all logits in memory.
            nats, _, likeliest = of_tokens(out, out.value, batch["targets"], "auto")
            asked = batch["weights"]
            # Tokens of weight 0 (context and padding) must not make `greedy` false.
            right = (likeliest == batch["targets"]) | (asked == 0)
            return -jnp.sum(nats * asked, axis=-1), jnp.all(right, axis=-1)

    return jax.jit(step, out_shardings=sharding.replicated(mesh))


def say_truncated(lengths: Sequence[int], most: int) -> None:
    """Logs how many texts are longer than `most` tokens, and therefore lose their start."""
    if (num := sum(n > most for n in lengths)) and processes.first():
        log.warning("%d of %d texts have more than %d tokens, and lose their start", num, len(lengths), most)


def _row(context: list[int], continuation: list[int], most: int) -> tuple[list[int], int]:
    """(context and continuation, truncated from the left; number of tokens that are scored)."""
    # The row has one token more than the model reads, because the last token is only a target.
    whole = [*context, *continuation][-(most + 1) :]
    return whole, min(len(continuation), len(whole) - 1)


def _batches(order: list[int], size: int) -> Iterator[list[int]]:
    for first in range(0, len(order), size):
        yield order[first : first + size]


def _collate(rows: list[tuple[list[int], int]], size: int, length: int) -> dict[str, np.ndarray]:
    """A batch of `size` rows of `length` tokens, padded on the right with segment 0 and weight
    0."""
    out = {name: np.zeros((size, length), np.int32) for name in ("tokens", "targets", "positions", "segment_ids")}
    out["weights"] = np.zeros((size, length), np.float32)
    for i, (whole, scored) in enumerate(rows):
        num = len(whole) - 1
        out["tokens"][i, :num], out["targets"][i, :num] = whole[:-1], whole[1:]
        out["segment_ids"][i, :num], out["positions"][i, :num] = 1, np.arange(num)
        out["weights"][i, num - scored : num] = 1.0
    return out
