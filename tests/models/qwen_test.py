"""Qwen's published sizes, and where a fresh one starts."""

import dataclasses

import jax
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.models.qwen import PRESETS, Qwen2Config, Qwen3Config
from bigmodel_jax.pretrained.qwen import QWEN2, QWEN3

# The totals of the published safetensors files.
PARAMETERS = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    assert params.count(PRESETS[name].make().spec) == PARAMETERS[name]


@pytest.mark.parametrize("config", [Qwen2Config, Qwen3Config])
def test_initial_values(config):
    """transformers' _init_weights draws every matrix from normal(0.02). Biases start at 0 and norms
    at 1."""
    cfg = dataclasses.replace(config.tiny(), embed_dim=128, mlp_dim=128, head_dim=32, vocab_size=256)
    for path, x in params.paths(params.init(cfg.make().spec, jax.random.key(0))).items():
        if path.endswith("scale"):
            np.testing.assert_array_equal(x, 1.0, path)
        elif path.endswith("bias"):
            np.testing.assert_array_equal(x, 0.0, path)
        else:
            assert abs(x.mean()) < 4 * 0.02 / x.size**0.5, path
            assert abs(x.std() / 0.02 - 1) < 4 / (2 * x.size) ** 0.5, path


@pytest.mark.parametrize("family", [QWEN2, QWEN3])
def test_presets_survive_the_way_out_and_in(family):
    for cfg in PRESETS.values():
        if type(cfg) is family.config:
            assert family.from_hf(family.to_hf(cfg)) == cfg


def test_what_a_qwen_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"a qwen2 has window = 0, qkv_bias = True.*this one has 4, True and False"):
        QWEN2.to_hf(dataclasses.replace(Qwen2Config.tiny(), window=4))
    with pytest.raises(ValueError, match="use_sliding_window = True is not supported"):
        QWEN3.from_hf(QWEN3.to_hf(Qwen3Config.tiny()) | {"use_sliding_window": True})
