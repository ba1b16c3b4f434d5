"""SmolLM3, OLMo, Granite, GLM-4 and Phi-3 each add something to Llama's block, which the outputs
show, and refuse the rest."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import (
    Glm4Config,
    GraniteConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    SmolLM3Config,
    glm,
    granite,
    olmo,
    phi3,
    smollm3,
)
from bigmodel_jax.nn.position import RopeScaling
from bigmodel_jax.pretrained.glm import GLM4
from bigmodel_jax.pretrained.granite import GRANITE
from bigmodel_jax.pretrained.olmo import OLMO2, OLMO3
from bigmodel_jax.pretrained.phi3 import PHI3
from bigmodel_jax.pretrained.smollm3 import SMOLLM3

FAMILIES = (SMOLLM3, OLMO2, OLMO3, GRANITE, GLM4, PHI3)
PRESETS = smollm3.PRESETS | olmo.PRESETS | granite.PRESETS | glm.PRESETS | phi3.PRESETS
TOKENS = jnp.asarray(np.arange(12, dtype=np.int32)[None])


def logits(cfg, seed: int = 0, **batch):
    model = cfg.make()
    p = params.init(model.spec, jax.random.key(seed))
    return model.apply(p, {"tokens": TOKENS, **batch}).value


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_way_out_and_in(name):
    cfg = PRESETS[name]
    family = next(f for f in FAMILIES if f.config is type(cfg))
    assert family.from_hf(family.to_hf(cfg)) == cfg


def test_a_layer_without_positions_sees_the_order_by_its_mask_alone():
    """If the only layer has no positions, a permutation of the tokens before the last one changes
    nothing at the last one."""
    cfg = dataclasses.replace(SmolLM3Config.tiny(), num_layers=1, nope_every=1, init_std=0.3)
    other = TOKENS.at[0, :11].set(TOKENS[0, :11][::-1])
    np.testing.assert_allclose(logits(cfg)[0, -1], logits(cfg, tokens=other)[0, -1], atol=1e-5)
    turned = dataclasses.replace(cfg, nope_every=2)
    assert np.abs(logits(turned)[0, -1] - logits(turned, tokens=other)[0, -1]).max() > 1e-2


def test_the_last_layer_of_a_group_of_an_olmo3_has_no_window():
    cfg = dataclasses.replace(Olmo3Config.tiny(), num_layers=5, global_every=2, window=7)
    assert cfg.windows() == (7, 0, 7, 0, 7)


def test_an_olmo_has_one_norm_over_all_heads():
    spec = params.paths(Olmo2Config.tiny().make().spec)
    assert spec["layers/attn/q_norm/scale"].shape == (2, 4, 8)
    assert not [path for path in spec if "attn_norm" in path or "mlp_norm" in path]


@pytest.mark.parametrize(
    "name", ["embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"]
)
def test_every_multiplier_of_a_granite_has_an_effect(name):
    cfg = dataclasses.replace(GraniteConfig.tiny(), init_std=0.3)
    other = dataclasses.replace(cfg, **{name: 3 * getattr(cfg, name)})
    assert np.abs(logits(cfg) - logits(other)).max() > 1e-3


def test_the_logits_of_a_granite_are_divided():
    cfg = GraniteConfig.tiny()
    np.testing.assert_allclose(
        logits(dataclasses.replace(cfg, logits_scaling=2.0)) * 2,
        logits(dataclasses.replace(cfg, logits_scaling=1.0)),
        rtol=1e-5,
    )


def test_the_length_of_a_row_selects_the_divisors_of_a_phi3():
    """A row of 12 tokens uses the divisors for long rows, and a row of 11 those for short ones. The
    other set has no effect."""
    cfg = dataclasses.replace(Phi3Config.tiny(), init_std=0.3)
    sets = {"short": cfg.long_rope, "long": dataclasses.replace(cfg.long_rope, short=(7.0, 7.0))}
    for original in (11, 12):
        one, other = (
            logits(dataclasses.replace(cfg, long_rope=dataclasses.replace(rope, original_max_seq_len=original)))
            for rope in sets.values()
        )
        assert (np.abs(one - other).max() > 1e-3) == (original == 12)


def test_a_phi3_decodes_by_the_divisors_of_its_cache():
    """A cache of 16 columns is long, so even its first tokens are rotated with the divisors of a
    long row."""
    long_rope = dataclasses.replace(Phi3Config.tiny().long_rope, original_max_seq_len=12)
    cfg = dataclasses.replace(Phi3Config.tiny(), init_std=0.3, window=0, long_rope=long_rope)
    model, tokens = cfg.make(), jnp.arange(16)[None]
    p = params.init(model.spec, jax.random.key(0))
    whole = model.apply(p, {"tokens": tokens}).value
    cache = params.empty(model.make_cache(1, 16, jnp.float32))
    np.testing.assert_allclose(model.apply(p, {"tokens": tokens[:, :8]}, cache=cache).value, whole[:, :8], atol=1e-4)
    assert np.abs(model.apply(p, {"tokens": tokens[:, :8]}).value - whole[:, :8]).max() > 1e-2


REFUSED = [
    (Phi3Config, {"rotary_dim": 6}, r"model.long_rope.short has 2 values; it must have model.rotary_dim / 2 = 3"),
    (Phi3Config, {"rope_scaling": RopeScaling("linear", 2.0)}, r"model.rope_scaling.kind = 'linear'; beside"),
    (Glm4Config, {"rotary_dim": 10}, r"model.rotary_dim = 10; it must be at most model.head_dim = 8"),
    (Glm4Config, {"rotary_dim": 3}, r"model.rotary_dim = 3; it must be a multiple of 2"),
    (SmolLM3Config, {"nope_every": 0}, r"model.nope_every = 0; it must be 1 or more"),
    (Olmo3Config, {"window": 0}, r"model.window = 0; it must be 1 or more"),
    (GraniteConfig, {"logits_scaling": 0.0}, r"model.logits_scaling = 0.0; it must be above 0"),
]


@pytest.mark.parametrize(("config", "changes", "said"), REFUSED)
def test_numbers_that_cannot_be(config, changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(config.tiny(), **changes).validate(ParallelConfig())


KEYS = [
    (SMOLLM3, {"no_rope_layers": [0, 1]}, r"no_rope_layers = \[0, 1\] is not supported; supported: every n-th is 0"),
    (SMOLLM3, {"use_sliding_window": True}, "use_sliding_window = True is not supported"),
    (OLMO3, {"layer_types": ["full_attention", "sliding_attention"]}, "supported: every n-th full_attention"),
    (OLMO3, {"rope_parameters": {"sliding_attention": {"rope_theta": 7.0}}}, "supported: one for both"),
    (OLMO3, {"rope_parameters": {"rope_type": "linear"}}, "rope_type = 'linear' is not supported"),
    (GRANITE, {"attention_bias": True}, "attention_bias = True is not supported"),
    (PHI3, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "type = 'linear' is not supported"),
    (PHI3, {"original_max_position_embeddings": 1}, "beside longrope it must be 2 or more"),
    (PHI3, {"head_dim": 16}, "head_dim = 16 is not supported; supported: 8, None"),
    (GLM4, {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
]


@pytest.mark.parametrize(("family", "keys", "said"), KEYS)
def test_files_of_other_mathematics_are_refused(family, keys, said):
    with pytest.raises(ValueError, match=said):
        family.from_hf(family.to_hf(family.config.tiny()) | keys)


# What the same LongRoPE is called in files of different ages, and where its factor comes from.
LONG_ROPES = [
    ({"type": "su"}, 1.2),
    ({"rope_type": "yarn", "attention_factor": None}, (1 + math.log(16) / math.log(2)) ** 0.5),
    ({"type": "longrope", "attention_factor": None, "factor": 4.0}, 3**0.5),
    ({"type": "longrope", "attention_factor": None, "factor": 0.5}, 1.0),
]


@pytest.mark.parametrize(("keys", "factor"), LONG_ROPES)
def test_a_phi3_reads_every_form_of_long_rope(keys, factor):
    hf = PHI3.to_hf(Phi3Config.tiny())
    table = {name: value for name, value in hf["rope_scaling"].items() if name != "type"}
    found = PHI3.from_hf(hf | {"rope_scaling": table | keys}).long_rope
    assert found == dataclasses.replace(Phi3Config.tiny().long_rope, attention_factor=pytest.approx(factor, rel=1e-12))


BASES = [
    ({"rope_theta": 7e5}, 4, 2, "700000.0 of full_attention and 500000.0 of sliding_attention"),
    ({"rope_theta": 7e5, "rope_parameters": {"full_attention": {"rope_theta": 9.0}}}, 4, 2, "rope_theta = 9.0 of full"),
    ({"rope_theta": 7e5, "rope_parameters": {"sliding_attention": {"rope_theta": 7e5}}}, 4, 2, 7e5),
    ({"rope_theta": None}, 4, 2, 5e5),
    ({"rope_theta": 7e5}, 2, 1, 7e5),
    ({"rope_theta": 7e5}, 2, 3, 5e5),
]


@pytest.mark.parametrize(("keys", "depth", "every", "said"), BASES)
def test_the_rotary_base_of_an_olmo3_is_that_of_the_layers_it_has(keys, depth, every, said):
    """transformers 5.23 reads such a file in this way: a `rope_theta` beside the tables reaches no
    layer with a window."""
    hf = OLMO3.to_hf(dataclasses.replace(Olmo3Config.tiny(), num_layers=depth, global_every=every))
    hf = {name: value for name, value in hf.items() if not name.startswith("rope_")} | keys
    if isinstance(said, str):
        with pytest.raises(ValueError, match=said):
            OLMO3.from_hf(hf)
    else:
        assert OLMO3.from_hf(hf).rope_theta == said


FIELDS = [
    (GRANITE, {"qkv_bias": True}, "model.qkv_bias = True: a granite has none; it must be False"),
    (SMOLLM3, {"window": 3}, "model.window = 3: a smollm3 has none; it must be 0"),
    (PHI3, {"head_dim": 16}, "model.head_dim = 16: in a phi3 it is embed_dim / num_heads = 8"),
    (PHI3, {"rope_scaling": RopeScaling("linear", 2.0)}, "model.rope_scaling.kind = 'linear': a phi3 has none"),
    (OLMO2, {"qk_norm": False}, "model.qk_norm = False; it must be True, as the files hold the norms"),
    (OLMO3, {"global_every": 9}, "model.global_every = 9; it must be at most 3 with 2 layers"),
]


@pytest.mark.parametrize(("family", "changes", "said"), FIELDS)
def test_fields_without_a_published_form_are_refused(family, changes, said):
    with pytest.raises(ValueError, match=said):
        family.to_hf(dataclasses.replace(family.config.tiny(), **changes))
