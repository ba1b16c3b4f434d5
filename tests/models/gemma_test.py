"""Gemma's published sizes, where a fresh one starts, local and global layers, and config files of
every age."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import few

from bigmodel_jax.core import params
from bigmodel_jax.core.precision import cast
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import compute
from bigmodel_jax.models.gemma import PRESETS, Gemma2Config, Gemma3Config, GemmaConfig
from bigmodel_jax.pretrained.gemma import GEMMA, GEMMA2, GEMMA3

# The totals of the published safetensors files; of Gemma 3 from 4B on without the image encoder
# (416,866,032) and its projection (1152 x embed_dim + 1152).
PARAMETERS = {
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 4_300_079_472 - 416_866_032 - 1152 * (2560 + 1),
    "gemma-3-12b": 12_187_325_040 - 416_866_032 - 1152 * (3840 + 1),
    "gemma-3-27b": 27_432_406_640 - 416_866_032 - 1152 * (5376 + 1),
}
GENERATIONS = [GEMMA, GEMMA2, GEMMA3]
every_generation = pytest.mark.parametrize("family", GENERATIONS, ids=lambda f: f.config.__name__)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    assert params.count(PRESETS[name].make().spec) == PARAMETERS[name]


@every_generation
def test_presets_survive_the_way_out_and_in(family):
    for cfg in PRESETS.values():
        if type(cfg) is family.config:
            assert family.from_hf(family.to_hf(cfg)) == cfg


@pytest.mark.exhaustive
@every_generation
def test_initial_values(family):
    """transformers' _init_weights draws every matrix from normal(0.02). Scales start at 0, where
    they multiply by 1."""
    cfg = dataclasses.replace(family.config.tiny(), embed_dim=128, mlp_dim=128, head_dim=32, vocab_size=256)
    for path, x in params.paths(params.init(cfg.make().spec, jax.random.key(0))).items():
        if path.endswith("scale"):
            np.testing.assert_array_equal(x, 0.0, path)
        else:
            assert abs(x.mean()) < 4 * 0.02 / x.size**0.5, path
            assert abs(x.std() / 0.02 - 1) < 4 / (2 * x.size) ** 0.5, path


@pytest.mark.few("2-reached1")
@pytest.mark.parametrize(("global_every", "reached"), [(1, [True] * 9), (2, [False] * 6 + [True] * 3)])
def test_a_local_layer_sees_its_window_and_a_global_one_everything(global_every, reached):
    """The test reads the gradient of one layer; of the two layers, the first is local."""
    cfg = dataclasses.replace(Gemma3Config.tiny(), num_layers=1, window=3, global_every=global_every, init_std=0.3)
    model = cfg.make()
    p = params.init(model.spec, jax.random.key(0))
    kinds = {path: x for path, x in params.paths(p).items() if not path.startswith("embed")}

    def last(table):
        tree = params.from_paths(kinds | {"embed/table": table})
        return jnp.sum(model.apply(tree, {"tokens": jnp.arange(9)[None]}).value[0, -1, 9:] ** 2)

    assert (np.abs(jax.grad(last)(p["embed"]["table"])[:9]).sum(-1) > 0).tolist() == reached


@pytest.mark.parametrize("config", few((Gemma2Config, Gemma3Config), Gemma3Config))
def test_unrolled_and_recomputed_layers_give_the_same(config):
    cfg = config.tiny()
    p = params.init(cfg.make().spec, jax.random.key(0))
    batch = {"tokens": jnp.arange(22).reshape(2, 11)}
    expected = jax.jit(cfg.make().apply)(p, batch).value
    for change in ({"unroll": True}, {"remat": "full"}, {"attention": "chunked"}):
        found = jax.jit(compute.changed(cfg, **change).make().apply)(p, batch).value
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_final_logits_stay_below_their_cap():
    cfg = dataclasses.replace(Gemma2Config.tiny(), final_softcap=0.5, init_std=1.0)
    logits = cfg.make().apply(params.init(cfg.make().spec, jax.random.key(0)), {"tokens": jnp.arange(11)[None]}).value
    assert 0.4 < jnp.abs(logits).max() <= 0.5


def test_the_embedding_scale_is_rounded_to_the_dtype_of_the_embedding():
    cfg = dataclasses.replace(GemmaConfig.tiny(), embed_dim=48)  # sqrt(48) = 6.9282, in bfloat16 6.9375
    p = params.init(cfg.make().spec, jax.random.key(0))
    parts, batch = cfg.make().parts, {"tokens": jnp.arange(11)[None]}
    seen = [
        parts.enter(parts.outside(tree), batch, rng=None, train=False, cache=None).x
        for tree in (p, cast(p, "bfloat16"))
    ]
    table = p["embed"]["table"][None, :11]
    np.testing.assert_allclose(seen[0], table * 48**0.5, rtol=1e-6)
    np.testing.assert_array_equal(seen[1], table.astype(jnp.bfloat16) * jnp.bfloat16(6.9375))


def test_config_files_of_transformers_4_and_5_say_the_same():
    cfg = PRESETS["gemma-3-4b"]
    old = GEMMA3.to_hf(cfg) | {"layer_types": None}
    new = GEMMA3.to_hf(cfg) | {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        }
    }
    for name in ("rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern"):
        del new[name]
    assert GEMMA3.from_hf(old) == GEMMA3.from_hf(new) == cfg


@pytest.mark.parametrize("keys", [{}, {"rope_parameters": {"full_attention": {"rope_theta": None}}}])
def test_a_rotary_base_of_null_is_the_default(keys):
    found = GEMMA3.from_hf(
        GEMMA3.to_hf(Gemma3Config.tiny()) | {"rope_theta": None, "rope_local_base_freq": None} | keys
    )
    assert (found.rope_theta, found.local_rope_theta) == (1_000_000.0, 10_000.0)


def test_what_a_generation_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"layer_types = .* is not supported; supported: every n-th full_attention"):
        GEMMA2.from_hf(GEMMA2.to_hf(Gemma2Config.tiny()) | {"layer_types": ["full_attention", "sliding_attention"]})
    with pytest.raises(ValueError, match="a gemma has no window, query_pre_attn_scalar or soft caps"):
        GEMMA.to_hf(dataclasses.replace(GemmaConfig.tiny(), final_softcap=30.0))
    with pytest.raises(ValueError, match=r"a gemma3_text has \(post_norms, qk_norm\) = \(True, True\)"):
        GEMMA3.to_hf(dataclasses.replace(Gemma3Config.tiny(), qk_norm=False))
    with pytest.raises(ValueError, match=r"model.global_every = 0; it must be 1 or more"):
        dataclasses.replace(Gemma3Config.tiny(), global_every=0).validate(ParallelConfig())
