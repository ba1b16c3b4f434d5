"""The logit lens ends in the model's own answer; patching everything gives the other text's, and
patching nothing one's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import few

from bigmodel_jax.core import params
from bigmodel_jax.explain import patching
from bigmodel_jax.explain.logit_lens import logit_lens
from bigmodel_jax.explain.opened import opened, residuals
from bigmodel_jax.models import MODELS

TEXT, OTHER = ({"tokens": jnp.asarray([ids])} for ids in ([3, 1, 4, 1, 5], [2, 7, 1, 8, 2]))


@functools.cache
def made(name: str):
    model = MODELS[name].tiny().make()
    return model, jax.jit(functools.partial(params.init, model.spec))(jax.random.key(0))


def value(model, tree, batch):
    return jax.jit(model.apply)(tree, batch).value


@pytest.mark.slow
@pytest.mark.parametrize("name", few(["llama", "gpt2", "deepseek"], "llama", "deepseek"))
def test_the_lens_ends_in_the_models_own_logits(name):
    model, tree = made(name)
    found = jax.jit(lambda tree: logit_lens(model, tree, TEXT))(tree)
    np.testing.assert_allclose(found[-1], value(model, tree, TEXT), atol=1e-5)
    assert len(found) == 1 + len(residuals(model, tree, TEXT)[0])
    here = opened(model, tree, TEXT)
    np.testing.assert_allclose(found[0], here.leave(here.embeddings, here.run(here.embeddings)[1]), atol=1e-5)
    assert np.abs(found[0] - found[-1]).max() > 1e-2


def test_a_lens_keeps_what_is_read():
    model, tree = made("llama")
    found = jax.jit(lambda tree: logit_lens(model, tree, TEXT, lambda logits: jnp.argmax(logits, axis=-1)))(tree)
    np.testing.assert_array_equal(found[-1], value(model, tree, TEXT).argmax(-1))


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_patching_every_layer_gives_the_other_texts_logits(name):
    model, tree = made(name)
    others = patching.stack_residuals(model, tree, OTHER)
    every, none = jnp.ones(others.shape[:3], bool), jnp.zeros(others.shape[:3], bool)
    patched = jax.jit(lambda where: patching.patched(model, tree, TEXT, others, where))
    np.testing.assert_allclose(patched(every), value(model, tree, OTHER), atol=1e-5)
    np.testing.assert_allclose(patched(none), value(model, tree, TEXT), atol=1e-5)
    last = none.at[-1, :, 2].set(True)
    own, theirs = (value(model, tree, batch) for batch in (TEXT, OTHER))
    np.testing.assert_allclose(patched(last)[:, 2], theirs[:, 2], atol=1e-5)
    np.testing.assert_allclose(patched(last)[:, 3:], own[:, 3:], atol=1e-5)


@pytest.mark.slow
def test_a_trace_patches_one_layer_and_token_at_a_time():
    model, tree = made("llama")
    found = patching.trace(model, tree, TEXT, OTHER, lambda value: value[0, -1, 9])
    own, theirs = (float(value(model, tree, batch)[0, -1, 9]) for batch in (TEXT, OTHER))
    others = patching.stack_residuals(model, tree, OTHER)
    one = jnp.zeros(others.shape[:3], bool).at[0, 0, 1].set(True)
    assert found.shape == (2, 5)
    assert found[0, 1] == pytest.approx(float(patching.patched(model, tree, TEXT, others, one)[0, -1, 9]), abs=1e-5)
    assert found[-1, -1] == pytest.approx(theirs, abs=1e-5), "the last residual of the last token is the answer"
    np.testing.assert_allclose(found[-1, :-1], own, atol=1e-5)


@pytest.mark.parametrize(("name", "message"), [("rnn", "no stack of layers"), ("xlnet", "more than one array")])
def test_a_model_without_one_residual_is_one_line(name, message):
    model = MODELS[name].tiny().make()
    with pytest.raises(ValueError, match=message):
        opened(model, params.empty(model.spec), TEXT)
