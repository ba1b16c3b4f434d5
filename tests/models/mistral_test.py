"""Mistral's published sizes, where a fresh one starts, and its window."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models.mistral import PRESETS, MistralConfig
from bigmodel_jax.pretrained.mistral import MISTRAL

# The totals of the published safetensors files.
PARAMETERS = {
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.2": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    assert params.count(PRESETS[name].make().spec) == PARAMETERS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_way_out_and_in(name):
    assert MISTRAL.from_hf(MISTRAL.to_hf(PRESETS[name])) == PRESETS[name]


def test_initial_values():
    """transformers' _init_weights draws every matrix from normal(0.02). Norms start at 1."""
    cfg = dataclasses.replace(MistralConfig.tiny(), embed_dim=128, mlp_dim=128, head_dim=32, vocab_size=256)
    for path, x in params.paths(params.init(cfg.make().spec, jax.random.key(0))).items():
        if path.endswith("scale"):
            np.testing.assert_array_equal(x, 1.0, path)
        else:
            assert abs(x.mean()) < 4 * 0.02 / x.size**0.5, path
            assert abs(x.std() / 0.02 - 1) < 4 / (2 * x.size) ** 0.5, path


@pytest.mark.parametrize("window", [1, 3])
def test_a_layer_sees_its_window_and_no_further(window):
    """The test reads which inputs have a gradient. Two layers reach twice as far as one."""
    cfg = dataclasses.replace(MistralConfig.tiny(), window=window, init_std=0.3)
    model = cfg.make()
    p = params.init(model.spec, jax.random.key(0))
    tokens = jnp.arange(12)[None]  # every token once, so that a row of the table is a place in the text

    def last(table):
        return jnp.sum(model.apply(p | {"embed": {"table": table}}, {"tokens": tokens}).value[0, -1] ** 2)

    reached = np.abs(jax.grad(last)(p["embed"]["table"])[:12]).sum(-1) > 0
    depth = cfg.num_layers * (window - 1) + 1
    assert reached.tolist() == [False] * (12 - depth) + [True] * depth


def test_a_negative_window_is_refused():
    with pytest.raises(ValueError, match=r"model.window = -1; it must be 0 or more"):
        dataclasses.replace(MistralConfig.tiny(), window=-1).validate(ParallelConfig())
