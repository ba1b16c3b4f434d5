"""Forward passes that need no slot: embeddings, classes, and log probabilities of a prompt's
tokens.

Shapes: B rows; T tokens of the longest row, padded to one of few lengths so that few programs are
compiled; D embed; V vocab; C classes; K likeliest tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.inference.prompts import bucket
from bigmodel_jax.models import Model
from bigmodel_jax.models.base import Out

CHUNK = 64  # positions of a prompt whose logits are in memory at the same time
MOST_ROWS, MOST_TOKENS = 32, 16_384  # most rows and tokens of one call of a program, which bounds the memory
Rows = Generator[None, None, np.ndarray]  # rows that are computed in parts: it yields between two, and returns all


class PromptScores(NamedTuple):
    """The scores of a prompt's own tokens.

    log_probs: (T,) of each token given those before it, 0 for the first. ids, tops: (T, K) the
    likeliest tokens at each position and their log probabilities.
    """

    log_probs: np.ndarray
    ids: np.ndarray
    tops: np.ndarray


def rows_of(texts: Sequence[Sequence[int]], most: int) -> dict[str, np.ndarray]:
    """A batch of texts, padded on the right with segment 0. most: the model's longest text."""
    length = min(bucket(max(map(len, texts))), most)
    batch = {name: np.zeros((len(texts), length), np.int32) for name in ("tokens", "segment_ids", "positions")}
    for row, ids in enumerate(texts):
        batch["tokens"][row, : len(ids)], batch["segment_ids"][row, : len(ids)] = ids, 1
        batch["positions"][row, : len(ids)] = np.arange(len(ids))
    return batch


def embed(model: Model, weights: Any, texts: Sequence[Sequence[int]], most: int) -> Rows:
    """(B, D) float32 of length 1: the mean of the last layer's states over each text's tokens."""
    return by_parts(functools.partial(_embed(model.apply), weights), rows_of(texts, most))


def by_parts(call: Callable[[dict], jax.Array], batch: dict[str, np.ndarray]) -> Rows:
    """The rows of `call`, which gets a few rows of the batch at a time.

    A part has a power of two of rows, so few programs are compiled. Rows of zeros fill the last.
    """
    total, places = len(next(iter(batch.values()))), max(x.shape[1] if x.ndim == 2 else 1 for x in batch.values())
    most = max(min(MOST_ROWS, MOST_TOKENS // places), 1)
    found = []
    for begin in range(0, total, most):
        part = {name: x[begin : begin + most] for name, x in batch.items()}
        num = len(next(iter(part.values())))
        rows = 1 << (num - 1).bit_length()
        filled = {name: np.pad(x, ((0, rows - num), *[(0, 0)] * (x.ndim - 1))) for name, x in part.items()}
        found.append(np.asarray(call(filled))[:num])
        yield
    return np.concatenate(found)


@functools.lru_cache(maxsize=8)
def _embed(apply) -> Any:
    def run(weights, batch):
        states = states_of(apply(weights, batch, train=False)).astype(jnp.float32)
        inside = batch["segment_ids"][..., None] > 0
        mean = jnp.sum(jnp.where(inside, states, 0), axis=1) / jnp.sum(inside, axis=1)
        # 1e-12 keeps a mean of exactly 0 finite.
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)

    return jax.jit(run)


def states_of(out: Out) -> jax.Array | None:
    """The states (B, T, D): a decoder's input of its head, or the output of an encoder without one.

    None where the model has neither.
    """
    if out.head is not None:
        return out.head.x
    return out.value.get("hidden") if isinstance(out.value, dict) else None


def scores(model: Model, weights: Any, tokens: Sequence[int], most: int, tops: int) -> PromptScores:
    """Scores each token of a prompt with a decoder, given the tokens before it. tops: K."""
    found = _scores(model.apply, tops)(weights, rows_of([tokens], most))
    log_probs, ids, best = (np.asarray(x)[: len(tokens) - 1] for x in found)
    # The scores are shifted by one: position t predicts token t + 1, and nothing predicts token 0.
    first = (np.zeros(1, np.float32), np.zeros((1, tops), np.int32), np.zeros((1, tops), np.float32))
    return PromptScores(*(np.concatenate(pair) for pair in zip(first, (log_probs, ids, best), strict=True)))


@functools.lru_cache(maxsize=8)
def _scores(apply, tops: int) -> Any:
    def run(weights, batch):
        head, num = apply(weights, batch, train=False).head, batch["tokens"].shape[1]
        after = jnp.roll(batch["tokens"][0], -1)  # the target at each position is the next token
        chunks = -(-num // CHUNK)

        def chunk(x, targets):
            log_probs = jax.nn.log_softmax(dataclasses.replace(head, x=x).logits(), axis=-1)
            best, ids = jax.lax.top_k(log_probs, tops)
            return jnp.take_along_axis(log_probs, targets[:, None], axis=-1)[:, 0], ids, best

        # The loop computes one chunk of positions at a time, because the logits of a whole prompt
        # (T, V) may be large.
        filled = ((0, chunks * CHUNK - num),)
        x = jnp.pad(head.x[0], (*filled, (0, 0))).reshape(chunks, CHUNK, -1)
        targets = jnp.pad(after, filled).reshape(chunks, CHUNK)
        found = jax.lax.map(lambda pair: chunk(*pair), (x, targets))
        return jax.tree.map(lambda y: y.reshape(chunks * CHUNK, *y.shape[2:])[:num], found)

    return jax.jit(run)


def classify(model: Model, weights: Any, batch: dict[str, np.ndarray]) -> Rows:
    """(B, C) probabilities of the classes."""
    return by_parts(functools.partial(_classify(model.apply), weights), batch)


@functools.lru_cache(maxsize=8)
def _classify(apply) -> Any:
    return jax.jit(lambda weights, batch: jax.nn.softmax(apply(weights, batch, train=False).value.astype(jnp.float32)))
