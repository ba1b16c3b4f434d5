"""Draws images for texts: the engine draws code after code, and a CLIP compares image and text
(Ramesh et al., arXiv:2102.12092, section 2.6).

Shapes: R images, T text tokens, N codes of an image.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.inference.engine import Engine, Request
from bigmodel_jax.inference.generate import MOST_SLOTS
from bigmodel_jax.inference.prompts import PROMPT_MULTIPLE, bucket
from bigmodel_jax.inference.sampling import Settings
from bigmodel_jax.models import Model
from bigmodel_jax.objectives import TextThenImage

ROWS = 64  # images that are decoded or ranked at a time


class Below:
    """Allows the tokens 0 .. num - 1 at each place of a text, and no others."""

    def __init__(self, num: int):
        # Bit n % 32 of word n // 32 allows token n.
        bits = np.arange(-(-num // 32) * 32, dtype=np.uint32).reshape(-1, 32)
        self._words = np.sum((bits < num) * (np.uint32(1) << bits % 32), axis=1, dtype=np.uint32)

    def allowed(self) -> np.ndarray:
        return self._words

    def take(self, token: int) -> None:
        """Each place allows the same tokens, whatever stands before it."""


def draw_codes(
    model: Model, params: Any, objective: TextThenImage, texts: np.ndarray, cfg: SampleConfig, seed: int = 0
) -> np.ndarray:
    """Draws codes (R, N) int32 of one image for the tokens of each text (R, T).

    Image n depends only on the weights, its text, `seed` and n.
    """
    own = objective.autoencoder_config()
    length, slots = bucket(texts.shape[1]) + own.num_tokens, min(len(texts), MOST_SLOTS)
    # Without a `sample` of its own, the engine takes settings and a constraint with each request.
    engine = Engine(model, None, slots=slots, length=length + -length % PROMPT_MULTIPLE, cache=cfg.cache)
    engine.load(params)
    settings, below = Settings.of(cfg, ends=False), Below(own.num_codes)
    prompts = np.asarray(objective.prompt(texts)).tolist()
    numbers = [engine.submit(Request(p, own.num_tokens, seed, n, settings, below)) for n, p in enumerate(prompts)]
    drawn: dict[int, list[int]] = {number: [] for number in numbers}
    while engine.num_unfinished:
        for number, token, *_ in engine.step():
            drawn[number].append(token)
    return np.array([drawn[number] for number in numbers], np.int32)


def images_of(params: Any, objective: TextThenImage, codes: np.ndarray) -> np.ndarray:
    """Decodes codes (R, N) to images (R, H, W, C) float32 in 0 .. 1."""
    return _in_parts(jax.jit(objective.images), params, codes)


def nearness(clip: Model, params: Any, images: np.ndarray, told: dict[str, np.ndarray]) -> np.ndarray:
    """Return (R,) the cosine that CLIP computes between each image and its text.

    told: the texts' tokens and segment_ids, (R, T) each.
    """

    def cosines(params, batch):
        pairs = clip.apply(params, batch).value.astype(jnp.float32)
        return jnp.sum(pairs[:, 0] * pairs[:, 1], axis=-1)

    return _in_parts(jax.jit(cosines), params, {"image": images} | told)


def _in_parts(run: Callable, params: Any, rows: Any) -> np.ndarray:
    num = len(jax.tree.leaves(rows)[0])
    parts = [jax.tree.map(lambda x: x[first : first + ROWS], rows) for first in range(0, num, ROWS)]  # noqa: B023
    return np.concatenate([sharding.to_host(run(params, part)) for part in parts])
