"""A decode cache in int8: how near the log-probabilities are to those with a whole cache, and what
it takes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import few

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import params
from bigmodel_jax.inference.engine import Engine
from bigmodel_jax.inference.request import Request
from bigmodel_jax.models import MODELS, decoder, llama
from bigmodel_jax.nn import stack

CFG = dataclasses.replace(MODELS["llama"].tiny(), head_dim=16, max_seq_len=64, init_std=0.3)
WHOLE, INT8 = SampleConfig(temperature=0.0), SampleConfig(temperature=0.0, cache="int8")


def texts(cfg, sample: SampleConfig) -> list[list[tuple[int, float]]]:
    model = cfg.make()
    weights = params.init(model.spec, jax.random.key(0))
    engine = Engine(model, sample, slots=2, length=32, log_probs=True)
    engine.load(weights)
    found = {engine.submit(Request(prompt, 12)): [] for prompt in ([5, 9, 11], [3, 4, 8, 9, 10, 2], [7])}
    while engine.num_unfinished:
        for number, token, log_prob, *_ in engine.step():
            found[number].append((token, log_prob))
    return list(found.values())


@pytest.mark.slow
def test_texts_have_nearly_the_log_probabilities_of_a_whole_cache():
    for got, want in zip(texts(CFG, INT8), texts(CFG, WHOLE), strict=True):
        same = [token for token, _ in got] == [token for token, _ in want]
        assert same
        off = np.abs(np.array([p for _, p in got]) - np.array([p for _, p in want]))
        assert 0 < off.max() < 0.05  # it is read in int8, and read well


@pytest.mark.parametrize("name", few(("gpt2", "gemma3", "mixtral", "gpt_oss"), "gemma3", marks=pytest.mark.slow))
def test_other_decoders_have_it_without_a_line_of_their_own(name):
    cfg = MODELS[name].tiny()
    for got, want in zip(texts(cfg, INT8), texts(cfg, WHOLE), strict=True):
        assert abs(got[0][1] - want[0][1]) < 0.05


@pytest.mark.slow
def test_layers_that_lie_apart_keep_the_same_values():
    model = CFG.make()
    weights = params.init(model.spec, jax.random.key(0))
    declared = decoder.narrowed(model.make_cache(1, 16, "float32"))
    batch = {"tokens": jnp.array([[5, 9, 11]], jnp.int32)}
    logits = []
    for cache in (declared, decoder.apart(declared)):
        tree = weights if cache is declared else stack.apart(model.spec, weights)
        out = jax.jit(model.apply)(tree, batch, cache=params.empty(cache))
        logits.append(jax.jit(model.apply)(tree, {"tokens": jnp.array([[2]], jnp.int32)}, cache=out.cache).value)
    np.testing.assert_allclose(*logits, rtol=2e-5, atol=2e-5)


def test_it_takes_about_a_quarter_of_float32():
    whole = llama.PRESETS["smollm2-135m"].make().make_cache(16, 1024, "float32")
    leaves = jax.tree.leaves(decoder.narrowed(whole).layers, is_leaf=lambda x: isinstance(x, params.Param))
    narrow = sum(p.size * jnp.dtype(p.dtype).itemsize for p in leaves)
    before = sum(p.size * 4 for p in whole.layers.values())
    assert narrow == before * (64 + 2) // (64 * 4)


def test_a_cache_of_another_form_is_one_line():
    model = MODELS["deepseek"].tiny().make()
    with pytest.raises(ValueError, match=r"cache = 'int8': this model's cache is not keys and values by heads alone"):
        Engine(model, INT8, slots=2, length=32).load(params.empty(model.spec))
