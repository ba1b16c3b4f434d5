"""Texts of different adapters in one batch: each is the text of an engine whose weights have its
adapters alone."""

import dataclasses

import jax
import numpy as np
import pytest

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import params
from bigmodel_jax.inference.engine import Engine
from bigmodel_jax.inference.mixed import using, why_apart
from bigmodel_jax.inference.request import Request
from bigmodel_jax.models import LlamaConfig, MixtralConfig, T5Config
from bigmodel_jax.models.adapters import Lora, Several
from bigmodel_jax.models.bases import BaseConfig
from bigmodel_jax.nn import lora

START = list(range(3, 40))  # longer than a prefix that is worth sharing
ONE = Lora("one", targets="layers/.*", rank=2, alpha=32.0)
TWO = Lora("two", targets="layers/attn/.*|embed/table", rank=3, dora=True)
THREE = Lora("three", targets="head/table", rank=1, new_tokens_from=60)
CHOICES = [("one",), (), ("two",), ("one", "two", "three"), None, ("three",), ("two",)]
REQUESTS = [Request([*START, 40 + n], 9, seed=3, nth=n, adapters=names) for n, names in enumerate(CHOICES)]


def adapted(cfg, *adapters):
    """(a tiny model with these adapters, weights whose every part counts)."""
    model = Several(adapters).adapt(dataclasses.replace(cfg, init_std=0.5).make())
    tree = params.init(model.spec, jax.random.key(0))
    flat = params.paths(tree[lora.BRANCH])
    keys = jax.random.split(jax.random.key(1), len(flat))
    shaken = {
        path: x + 0.3 * jax.random.normal(key, x.shape) for (path, x), key in zip(flat.items(), keys, strict=True)
    }
    return model, tree | {lora.BRANCH: params.from_paths(shaken)}


def said(model, weights, requests, **options):
    """([tokens], [log-probabilities]) of the requests."""
    engine = Engine(model, SampleConfig(temperature=0.7), length=64, log_probs=True, **options)
    engine.load(weights)
    out = {engine.submit(request): [] for request in requests}
    while engine.num_unfinished:
        for token in engine.step():
            out[token.id].append(token)
    return [[t.token for t in text] for text in out.values()], [[t.log_prob for t in text] for text in out.values()]


@pytest.mark.slow
def test_a_row_of_a_batch_uses_its_adapters():
    model, weights = adapted(LlamaConfig.tiny(), ONE, TWO, THREE)
    rows, tokens = [("one",), ("two", "three"), ("one",)], np.arange(9, dtype=np.int32).reshape(3, 3) + 53
    run = jax.jit(lambda tree: model.apply(tree, {"tokens": tokens}).value)
    mixed = run(using(weights, ("one", "two", "three"), rows))
    alone = {names: run(lora.only(weights, *names)) for names in set(rows)}
    assert np.abs(alone["one",] - alone["two", "three"]).max() > 1
    for n, names in enumerate(rows):
        np.testing.assert_allclose(mixed[n], alone[names][n], rtol=1e-5, atol=2e-5, err_msg=str(names))


@pytest.mark.slow
def test_a_text_is_that_of_its_adapters_alone():
    """There are more texts than slots, prompts read in pieces, and prefixes that texts of other
    adapters must not reuse."""
    model, weights = adapted(LlamaConfig.tiny(), ONE, TWO, THREE)
    names, options = ("one", "two", "three"), {"turns": 3, "piece": 16, "prefixes": 4}
    tokens, log_probs = said(model, weights, REQUESTS, slots=4, adapters=names, **options)
    for request, text, scores in zip(REQUESTS, tokens, log_probs, strict=True):
        own = lora.only(weights, *(names if request.adapters is None else request.adapters))
        (alone,), (wanted,) = said(model, own, [request._replace(adapters=None)], slots=1)
        assert text == alone, request.adapters
        np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=2e-5)
    assert len({tuple(text) for text in tokens}) > 4, "the adapters change texts"


@pytest.mark.slow
def test_an_engine_takes_the_adapters_that_it_was_given_alone():
    model, _ = adapted(LlamaConfig.tiny(), ONE, TWO)
    mixed = Engine(model, slots=2, length=64, adapters=("one", "two"))
    with pytest.raises(ValueError, match=r"'tow' is unknown \(perhaps you meant 'two'\); known: one, two"):
        mixed.submit(REQUESTS[0]._replace(adapters=("tow",)))
    with pytest.raises(ValueError, match="'one' is unknown; known: none, so leave it out"):
        Engine(model, slots=2, length=64).submit(REQUESTS[0])


@pytest.mark.parametrize(
    ("cfg", "adapter", "why"),
    [
        (LlamaConfig.tiny(), dataclasses.replace(ONE, base=BaseConfig("nf4", 16)), ""),
        (LlamaConfig.tiny(), dataclasses.replace(ONE, targets="", trained=".*/scale"), "is trained in full"),
        (LlamaConfig.tiny(), Lora("one", targets="head/table", rank=1, dora=True), "is merged with its adapters"),
        (MixtralConfig.tiny(), dataclasses.replace(ONE, targets="layers/.*(gate|up|down)"), "is merged with its"),
        (T5Config.tiny(), dataclasses.replace(ONE, targets="(en|de)coder/layers/.*"), ""),
    ],
)
def test_a_model_that_reads_a_weight_for_all_rows_at_once_says_so(cfg, adapter, why):
    model = Several((adapter,)).adapt(cfg.make())
    weights = params.abstract(model.spec)
    found = why_apart(model, weights, ("one",))
    assert why in found if why else not found
