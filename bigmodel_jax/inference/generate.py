"""Continues several prompts together, through the engine."""

from collections.abc import Mapping, Sequence
from typing import Any

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.inference.engine import Engine
from bigmodel_jax.inference.prompts import PROMPT_MULTIPLE
from bigmodel_jax.inference.request import Request
from bigmodel_jax.models import Model

# The most texts that are generated at a time. Further texts wait for a free slot.
MOST_SLOTS = 64


def generate(
    model: Model,
    params: Any,
    prompts: Sequence[Sequence[int]],
    cfg: SampleConfig,
    *,
    stop: Sequence[int],
    seed: int = 0,
    inputs: Sequence[Mapping[str, Any]] = (),
) -> list[list[int]]:
    """Continuations of `prompts` (token ids), each up to `cfg.max_tokens` long.

    A continuation ends before a token of `stop`. Text n depends only on the weights, its prompt,
    `seed` and n. An encoder-decoder encodes the prompts, and its decoder starts with the token that
    the model names. inputs: arrays of one row that the model reads beside each prompt (`Request` in
    engine.py); () for none. Raises ValueError for an empty prompt, or a model that cannot generate.
    """
    if not prompts or not all(len(p) for p in prompts):
        raise ValueError("prompt = '': it is empty; give at least one character to continue from")
    length = max(len(p) for p in prompts) + cfg.max_tokens
    engine = Engine(
        model,
        cfg,
        slots=min(len(prompts), MOST_SLOTS),
        length=length + -length % PROMPT_MULTIPLE,
        stop=stop,
        turns=max(cfg.max_tokens - 1, 1),  # so that one step generates the whole text
    )
    engine.load(params)
    beside = inputs or [None] * len(prompts)
    requests = [
        Request(p, cfg.max_tokens, seed, n, inputs=x) for n, (p, x) in enumerate(zip(prompts, beside, strict=True))
    ]
    numbers = [engine.submit(request) for request in requests]
    texts = {number: [] for number in numbers}
    while engine.num_unfinished:
        for number, token, *_ in engine.step():
            if token not in stop:
                texts[number].append(token)
    return [texts[number] for number in numbers]
