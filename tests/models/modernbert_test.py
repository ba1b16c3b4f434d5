"""ModernBERT: published sizes, initial distributions, which tokens a layer sees, pooling, and what
a file may say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.compress import prune_structured
from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import ModernBertConfig
from bigmodel_jax.models.modernbert import PRESETS
from bigmodel_jax.pretrained import FAMILIES

# transformers counts the masked LM so. The model cards say 149M and 395M.
PUBLISHED = {"modernbert-base": 149_655_232, "modernbert-large": 395_881_664}
TINY = ModernBertConfig.tiny()
MASKED_LM, CLASSIFIER = FAMILIES["ModernBertForMaskedLM"], FAMILIES["ModernBertForSequenceClassification"]


def tree_of(cfg: ModernBertConfig):
    return params.init(cfg.make().spec, jax.random.key(0))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_their_published_size_and_survive_the_way_out_and_in(name):
    assert params.count(PRESETS[name].make().spec) == PUBLISHED[name]
    assert MASKED_LM.from_hf(MASKED_LM.to_hf(PRESETS[name])) == PRESETS[name]


def test_initial_distributions():
    """transformers' _init_weights cuts normals off at two deviations, and draws narrower ones where
    a layer adds to the residual."""
    cfg = ModernBertConfig(
        vocab_size=1000, num_layers=2, embed_dim=128, num_heads=4, mlp_dim=256, head="classification"
    )
    cfg = dataclasses.replace(cfg, num_classes=40)
    cut = 0.8796  # the deviation of a standard normal that is cut off at two
    for path, x in params.paths(tree_of(cfg)).items():
        if path.endswith(("scale", "bias")):
            assert (x == path.endswith("scale")).all(), path
            continue
        narrow = path.endswith(("attn/o", "mlp/down", "transform/dense/kernel"))
        std = 128**-0.5 if path == "head/kernel" else 0.02 / (2 if narrow else 1)
        assert float(x.std()) == pytest.approx(cut * std, rel=5 / (2 * x.size) ** 0.5), path
        assert float(jnp.abs(x).max()) <= 2 * std * 1.0001, path


@pytest.mark.parametrize(("global_every", "reached"), [(2, [4, 5, 6, 7, 8]), (1, list(range(12)))])
def test_a_local_layer_sees_its_window_on_both_sides(global_every, reached):
    """The first of two layers is global. The test reads which tokens the second layer adds to the
    output at token 6."""
    cfg = dataclasses.replace(TINY, num_layers=2, window=3, global_every=global_every, head="none", init_std=0.3)
    tree = tree_of(cfg)
    tree["layers"]["attn"]["o"] = tree["layers"]["attn"]["o"].at[0].set(0.0)  # no token sees another in the first layer
    tokens = jnp.arange(12)[None]

    def seen(table):
        return cfg.make().apply(tree | {"embed": {"table": table}}, {"tokens": tokens}).value["hidden"][0, 6, 0]

    gradient = jax.grad(seen)(tree["embed"]["table"])[:12]
    assert np.flatnonzero(np.abs(gradient).max(1) > 1e-7).tolist() == reached
    assert cfg.windows() == ((0, 5) if global_every == 2 else (0, 0))


def test_the_first_layer_has_no_norm_before_its_attention():
    assert TINY.make().spec["attn_norm"]["scale"].shape == (2, 32)
    assert "attn_norm" not in dataclasses.replace(TINY, num_layers=1).make().spec


def test_a_mean_is_that_of_a_rows_own_tokens():
    cfg = dataclasses.replace(TINY, head="classification", num_classes=3, pooling="mean", init_std=0.3)
    model, tree = cfg.make(), tree_of(cfg)
    tokens = jnp.arange(12)[None]
    alone = model.apply(tree, {"tokens": tokens[:, :7]}).value
    padded = model.apply(tree, {"tokens": tokens, "segment_ids": (jnp.arange(12) < 7).astype(jnp.int32)[None]}).value
    np.testing.assert_allclose(padded, alone, atol=1e-5)
    empty = model.apply(tree, {"tokens": tokens, "segment_ids": jnp.zeros((1, 12), jnp.int32)}).value
    assert np.isfinite(empty).all()


def test_layers_cannot_be_pruned():
    with pytest.raises(ValueError, match="are of several kinds"):
        prune_structured.check_layers(dataclasses.replace(TINY, global_every=1))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"head": "classification"}, "model.num_classes = 0; model.head = 'classification' needs 1 or more"),
        ({"head": "pretraining"}, r"model\.head = 'pretraining'"),
        ({"num_heads": 32}, "model.head_dim = 1; it must be a multiple of 2"),
        ({"window": 0}, "model.window = 0; it must be 1 or more"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(TINY, **fields).validate(ParallelConfig())


def changed(**keys) -> ModernBertConfig:
    return MASKED_LM.from_hf(MASKED_LM.to_hf(TINY) | keys)


FULL, LOCAL = "full_attention", "sliding_attention"
TABLES = {FULL: {"rope_type": "default", "rope_theta": 7.0}, LOCAL: {"rope_type": "default", "rope_theta": 3.0}}


def test_a_file_of_transformers_5_says_layers_and_bases_in_other_keys():
    found = changed(layer_types=[FULL, LOCAL, LOCAL], rope_parameters=TABLES)
    assert (found.global_every, found.rope_theta, found.local_rope_theta) == (3, 7.0, 3.0)
    assert changed(layer_types=[FULL] * 3).windows() == (0, 0, 0)
    assert changed(local_attention=1).window == 1
    assert changed(local_attention=128).window == 65


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"hidden_activation": "silu"}, "hidden_activation = 'silu' is not supported"),
        ({"classifier_activation": "relu"}, "classifier_activation = 'relu' is not supported"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"mlp_bias": True}, "mlp_bias = True is not supported"),
        ({"norm_bias": True}, "norm_bias = True is not supported"),
        ({"classifier_bias": True}, "classifier_bias = True is not supported"),
        ({"decoder_bias": False}, "decoder_bias = False is not supported"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False is not supported"),
        ({"classifier_pooling": "max"}, "classifier_pooling = 'max' is not supported"),
        ({"head_dim": 4}, "head_dim = 4 is not supported; supported: None, 8"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling = .* is not supported"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "rope_type = 'default' is not supported"),
        ({"rope_parameters": {FULL: {"rope_type": "yarn", "factor": 2.0}}}, "rope_type = 'yarn' is not supported"),
        ({"layer_types": [LOCAL, FULL, LOCAL]}, "layer_types = .* is not supported; supported: every n-th"),
        ({"layer_types": [FULL, LOCAL, FULL, LOCAL]}, "layer_types = .* is not supported; supported: every n-th"),
    ],
)
def test_files_of_other_mathematics_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        changed(**keys)


def test_a_head_of_another_architecture_is_refused():
    with pytest.raises(ValueError, match=r"model\.head = 'masked_lm' is not published for this architecture"):
        CLASSIFIER.to_hf(TINY)
