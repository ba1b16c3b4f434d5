"""Text generation with a decode cache: one compiled program prefills, then emits a token per loop turn."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.models import Model
from bigmodel_jax.nn import stack

# From so many bytes of weights on, a CPU generates from layers that lie apart: half the time a token (SmolLM2-135M), for
# a program with a copy of the layer per layer, which takes longer to compile.
APART_FROM = 1 << 26

# Prompts are padded to a multiple of this, so that few lengths are ever compiled.
PROMPT_MULTIPLE = 16


def generate(
    model: Model,
    params: Any,
    prompts: Sequence[Sequence[int]],
    cfg: SampleConfig,
    *,
    stop: Sequence[int],
    seed: int = 0,
) -> list[list[int]]:
    """Continuations of `prompts` (token ids), each up to `cfg.max_tokens` long or to a token of `stop`, left out.

    An encoder-decoder encodes the prompts, and its decoder begins with the one token that the model names.
    ValueError for an empty prompt or a model that cannot generate.
    """
    if model.make_cache is None:
        raise ValueError("model: this model has no decode cache, so it cannot generate")
    if not prompts or not all(len(p) for p in prompts):
        raise ValueError("prompt = '': it is empty; give at least one character to continue from")
    tokens, segments = left_pad(prompts)
    encoder = {}
    if model.decoder_start is not None:
        encoder = {"encoder_tokens": tokens, "encoder_segment_ids": segments}
        segments = np.ones((len(prompts), 1), np.int32)
        tokens = model.decoder_start * segments
    stop = tuple(stop) or (-1,)
    run = _compiled(model.apply, model.make_cache, cfg, stop)
    layered = stack.apart(model.spec, params) if _large_on_one_cpu(params) else params
    out = sharding.to_host(run(params, layered, tokens, segments, encoder, jax.random.key(seed)))
    return [row[: _first(row, stop)].tolist() for row in out]


def _large_on_one_cpu(params: Any) -> bool:
    leaves = [x for x in jax.tree.leaves(params) if isinstance(x, jax.Array)]
    devices = {device for x in leaves for device in x.devices()}
    return sum(x.nbytes for x in leaves) >= APART_FROM and len(devices) == 1 and devices.pop().platform == "cpu"


def _first(row: np.ndarray, stop: tuple[int, ...]) -> int:
    hits = np.flatnonzero(np.isin(row, stop))
    return int(hits[0]) if hits.size else len(row)


def left_pad(prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, segments), each (B, P) int32, so that all prompts end in the last column; padding is segment 0."""
    length = max(len(p) for p in prompts)
    length += -length % PROMPT_MULTIPLE
    tokens = np.zeros((len(prompts), length), np.int32)
    segments = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = prompt
        segments[row, length - len(prompt) :] = 1
    return tokens, segments


@functools.lru_cache(maxsize=8)
def _compiled(apply, make_cache, cfg: SampleConfig, stop: tuple[int, ...]):
    return jax.jit(functools.partial(_generate, apply, make_cache, cfg, stop))


def _generate(apply, make_cache, cfg, stop, params, layered, tokens, segments, encoder, rng):
    """`layered`: `params` in the form in which the loop over tokens reads them fastest."""
    B, P = tokens.shape
    positions = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
    dtype = jax.tree.leaves(params)[0].dtype
    cache = make_cache(B, P + cfg.max_tokens, dtype)
    first = {"tokens": tokens, "positions": positions, "segment_ids": segments, **encoder}
    prefill = apply(params, first, cache=cache)
    first_rng, rng = jax.random.split(rng)
    token = sample(prefill.value[:, -1], first_rng, cfg)
    out = jnp.full((B, cfg.max_tokens), stop[0], jnp.int32)

    def more(carry):
        i, done = carry[0], carry[4]
        return (i < cfg.max_tokens) & ~jnp.all(done)

    def emit(carry):
        i, token, position, out, done, cache = carry
        token = jnp.where(done, stop[0], token)
        out = out.at[:, i].set(token)
        done |= jnp.isin(token, jnp.array(stop))
        step = {
            "tokens": token[:, None],
            "positions": position[:, None],
            "segment_ids": jnp.ones((B, 1), jnp.int32),
        }
        result = apply(layered, step, cache=cache)
        token = sample(result.value[:, 0], jax.random.fold_in(rng, i), cfg)
        return i + 1, token, position + 1, out, done, result.cache

    start = (0, token, positions[:, -1] + 1, out, jnp.zeros(B, bool), prefill.cache)
    return jax.lax.while_loop(more, emit, start)[3]


def sample(logits: jax.Array, rng: jax.Array, cfg: SampleConfig) -> jax.Array:
    """Next tokens (B,) of logits (B, V): temperature, then the top k, then the smallest set with probability top_p.

    Nucleus sampling: Holtzman et al., arXiv:1904.09751.
    """
    if cfg.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits.astype(jnp.float32) / cfg.temperature
    if 0 < cfg.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, cfg.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if cfg.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probs = jax.nn.softmax(ordered, axis=-1)
        # A token stays if the likelier ones together have not reached top_p; the likeliest always does.
        keep = jnp.cumsum(probs, axis=-1) - probs < cfg.top_p
        least = jnp.min(jnp.where(keep, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(rng, logits, axis=-1).astype(jnp.int32)
