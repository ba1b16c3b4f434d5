"""Prompts with images in the engine: beside others, and where earlier prompts are kept."""

import jax
import numpy as np
import pytest

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import params
from bigmodel_jax.inference.engine import Engine
from bigmodel_jax.inference.request import Request
from bigmodel_jax.models import LlavaConfig

CFG = LlavaConfig.tiny()
PROMPT = [CFG.image_token_id] * CFG.image_tokens + list(range(1, 40))
pytestmark = pytest.mark.slow  # each program is compiled for prompts of its own
GREEDY = SampleConfig(temperature=0.0)


@pytest.fixture(scope="module")
def model():
    made = CFG.make()
    return made, jax.tree.map(lambda x: 8 * x, params.init(made.spec, jax.random.key(0)))


def answers(model, requests, **options) -> list[list[int]]:
    engine = Engine(model[0], GREEDY, slots=2, length=64, **options)
    engine.load(model[1])
    found = {engine.submit(request): [] for request in requests}
    while engine.num_unfinished:
        for token in engine.step():
            found[token.id].append(token.token)
    return list(found.values())


def test_equal_tokens_of_other_images_are_other_prompts(model):
    """Prompts with a common beginning share what was read, unless it contains an image."""
    images = np.random.default_rng(0).random((3, 1, *CFG.vision.image_shape), np.float32)
    requests = [Request(PROMPT, 6, inputs={"image": image}) for image in images]
    alone = [answers(model, [request])[0] for request in requests]
    assert len({tuple(answer) for answer in alone}) > 1, "the image changes nothing"
    assert answers(model, requests) == alone
    assert answers(model, requests, prefixes=2) == alone


def test_a_text_without_an_image_stands_beside_one(model):
    image = np.ones((1, *CFG.vision.image_shape), np.float32)
    plain, pictured = Request(list(range(1, 9)), 6), Request(PROMPT, 6, inputs={"image": image})
    assert answers(model, [plain, pictured]) == [answers(model, [one])[0] for one in (plain, pictured)]
