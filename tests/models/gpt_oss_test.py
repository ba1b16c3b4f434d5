"""gpt-oss's published sizes, where a fresh one starts, how far its layers see, and its clamped
SwiGLU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import Compute, gpt_oss
from bigmodel_jax.models.gpt_oss import PRESETS, GptOssConfig
from bigmodel_jax.pretrained.gpt_oss import GPT_OSS

# arXiv:2508.10925, table 1, gives 20.91B and 116.83B; these are the published tensors, counted
# before packing.
PARAMETERS = {"gpt-oss-20b": 20_914_757_184, "gpt-oss-120b": 116_829_156_672}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    assert params.count(PRESETS[name].make().spec) == PARAMETERS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_way_out_and_in(name):
    assert GPT_OSS.from_hf(GPT_OSS.to_hf(PRESETS[name])) == PRESETS[name]


@pytest.mark.exhaustive
def test_initial_values():
    """transformers' _init_weights draws matrices, sinks and the router's bias from normal(0.02).
    Other biases start at 0 and norms at 1."""
    cfg = dataclasses.replace(
        GptOssConfig.tiny(), embed_dim=128, mlp_dim=128, head_dim=32, num_heads=64, num_experts=64, vocab_size=256
    )
    for path, x in params.paths(params.init(cfg.make().spec, jax.random.key(0))).items():
        if path.endswith("scale"):
            np.testing.assert_array_equal(x, 1.0, path)
        elif path.endswith("bias") and path != "layers/router/bias":
            np.testing.assert_array_equal(x, 0.0, path)
        else:
            assert abs(x.mean()) < 4 * 0.02 / x.size**0.5, path
            assert abs(x.std() / 0.02 - 1) < 4 / (2 * x.size) ** 0.5, path


def test_every_second_layer_is_windowed():
    cfg = dataclasses.replace(GptOssConfig.tiny(), num_layers=3, window=4)
    assert gpt_oss.is_local(cfg).tolist() == [True, False, True]


@pytest.mark.few("1-True", "2-False")
@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_first_layer_sees_its_window_and_the_second_everything(num_layers, unroll):
    """The test reads which inputs have a gradient."""
    cfg = dataclasses.replace(
        GptOssConfig.tiny(), num_layers=num_layers, window=3, init_std=0.3, compute=Compute(unroll=unroll)
    )
    model = cfg.make()
    p = params.init(model.spec, jax.random.key(0))
    tokens = jnp.arange(12)[None]  # every token once, so that a row of the table is a place in the text

    def last(table):
        return jnp.sum(model.apply(p | {"embed": {"table": table}}, {"tokens": tokens}).value[0, -1] ** 2)

    reached = np.abs(jax.jit(jax.grad(last))(p["embed"]["table"])[:12]).sum(-1) > 0
    seen = 3 if num_layers == 1 else 12
    assert reached.tolist() == [False] * (12 - seen) + [True] * seen


def test_clamped_swiglu():
    gate, up = jnp.array([-20.0, 1.0, 20.0, 2.0]), jnp.array([1.0, -20.0, 20.0, 0.5])
    ours = gpt_oss.clamped_swiglu(gate, up, alpha=1.702, limit=7.0)

    def glu(g, u):
        return g / (1 + np.exp(-1.702 * g)) * (u + 1)

    np.testing.assert_allclose(ours, [glu(-20.0, 1.0), glu(1.0, -7.0), glu(7.0, 7.0), glu(2.0, 0.5)], rtol=1e-6)


def test_what_a_gpt_oss_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"model.window = 0; it must be 1 or more"):
        dataclasses.replace(GptOssConfig.tiny(), window=0).validate(ParallelConfig())
    with pytest.raises(ValueError, match="a gpt-oss has qkv_bias = True"):
        GPT_OSS.to_hf(dataclasses.replace(GptOssConfig.tiny(), qkv_bias=False))
    with pytest.raises(ValueError, match="layer_types = .* is not supported"):
        GPT_OSS.from_hf(GPT_OSS.to_hf(GptOssConfig.tiny()) | {"layer_types": ["full_attention"] * 2})
