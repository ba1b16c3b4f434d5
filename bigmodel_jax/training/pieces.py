"""Splits batches into pieces (microbatches, devices, slices) whose losses add up to the batch's."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bigmodel_jax.config import Config


def in_pieces(config: Config) -> bool:
    """Whether the loss is computed separately on pieces of the batch."""
    parallel = config.parallel
    groups = parallel.deterministic or (parallel.slices > 1 and parallel.slice_gradients == "bfloat16")
    return config.train.microbatches > 1 or parallel.pipeline_schedule == "1f1b" or groups


def with_token_share(batch: dict, total: Callable = lambda x: x) -> dict:
    """Adds "token_share" (B,) to a batch of tokens.

    With it, means over the tokens of the pieces add up to the mean over the tokens of the batch
    (nn/experts/moe.py). `total` adds a number up over the devices that hold parts of the batch.
    """
    if not {"tokens", "weights"} <= batch.keys():
        return batch
    held = batch["segment_ids"] > 0 if "segment_ids" in batch else jnp.ones_like(batch["tokens"], bool)
    tokens = held.astype(jnp.float32).sum(tuple(range(1, held.ndim)))
    weight = total(batch["weights"].astype(jnp.float32).sum())
    # The step divides every sum by the summed loss weight. So a row's share of all tokens is
    # multiplied by that weight here.
    return batch | {"token_share": tokens * weight / jnp.maximum(total(tokens.sum()), 1.0)}


def split(x: jax.Array, n: int) -> jax.Array:
    """(B, ...) -> (n, B/n, ...): piece i has the rows i, i + n, ..., so each device keeps
    its rows.
    """
    return jnp.moveaxis(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 1, 0)
