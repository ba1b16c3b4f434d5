"""MM-DiT has the published sizes, starts at zero, and reads its text, but neither padding nor
hidden texts."""

import dataclasses

import jax
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import MMDiTConfig, MMDiTTextConfig
from bigmodel_jax.models.mmdit import PRESETS, middle, positions
from bigmodel_jax.pretrained import FAMILIES

TINY, TOKENS = MMDiTConfig.tiny(), MMDiTTextConfig.tiny()
FAMILY = FAMILIES["SD3Transformer2DModel"]
# Counted by diffusers 0.42 on the meta device: SD3Transformer2DModel with the config.json of either
# model.
PUBLISHED = {"sd3-medium": 2_028_328_000, "sd3.5-large": 8_056_627_520}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    assert params.count(PRESETS[name].make().spec) == PUBLISHED[name]


def batch_of(cfg, n=3):
    rng = np.random.default_rng(0)
    segments = np.array([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]], np.int32)[:n]
    batch = {"image": rng.standard_normal((n, *cfg.image_shape), np.float32), "timestep": np.array([0.0, 5.5, 999.0])}
    if hasattr(cfg, "text"):
        return batch | {"tokens": rng.integers(1, 64, (n, 6)).astype(np.int32), "segment_ids": segments}
    states = rng.standard_normal((n, 6, cfg.text_dim), np.float32)
    pooled = rng.standard_normal((n, cfg.pooled_dim), np.float32)
    return batch | {"text_states": states, "text_pooled": pooled, "segment_ids": segments}


def answers(cfg):
    """A function from a batch to a fresh model's output."""
    model = cfg.make()
    tree = params.init(model.spec, jax.random.key(0))
    return jax.jit(lambda batch, **options: model.apply(tree, batch, **options).value, static_argnames="train")


def test_a_fresh_model_answers_zero():
    cfg = dataclasses.replace(TINY, zero_init=True)
    assert not answers(cfg)(batch_of(cfg)).any()


@pytest.mark.parametrize("cfg", [TINY, TOKENS], ids=["states", "tokens"])
def test_the_text_matters_and_its_padding_does_not(cfg):
    batch, apply = batch_of(cfg), answers(cfg)
    key, before = "tokens" if hasattr(cfg, "text") else "text_states", apply(batch)
    changed = batch[key].copy()
    changed[:, -1] = 7
    after = apply(batch | {key: changed})
    np.testing.assert_allclose(after[1:], before[1:], atol=1e-6)
    assert np.abs(after[0] - before[0]).max() > 1e-6


def test_texts_are_hidden_in_training_alone_and_where_asked():
    cfg = dataclasses.replace(TINY, text_dropout=0.999)
    batch, apply = batch_of(cfg), answers(cfg)
    told, hidden = apply(batch), apply(batch | {"hidden": np.array([True, False, True])})
    np.testing.assert_array_equal(hidden[1], told[1])
    assert np.abs(hidden - told)[::2].max() > 1e-5
    nothing = apply(batch | {name: 0 * batch[name] for name in ("text_states", "text_pooled")})
    np.testing.assert_allclose(hidden[::2], nothing[::2], atol=1e-6)
    np.testing.assert_allclose(apply(batch, rng=jax.random.key(1), train=True), nothing, atol=1e-6)


def test_a_picture_lies_in_the_middle_of_the_largest():
    """The grid has 6 patches a side and the picture 4, so one patch is left out on each side."""
    inner = positions(TINY).reshape(6, 6, -1)[1:5, 1:5].reshape(16, -1)
    np.testing.assert_array_equal(middle(TINY), inner)


PUBLISHED_CONFIG = {
    "_class_name": "SD3Transformer2DModel",
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "sample_size": 128,
}
LARGE = {"caption_projection_dim": 2432, "num_attention_heads": 38, "num_layers": 38, "qk_norm": "rms_norm"}


def test_published_files_are_the_presets():
    assert FAMILY.from_hf(PUBLISHED_CONFIG) == PRESETS["sd3-medium"]
    assert FAMILY.from_hf(PUBLISHED_CONFIG | LARGE) == PRESETS["sd3.5-large"]
    assert FAMILY.from_hf(FAMILY.to_hf(TINY)) == TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dual_attention_layers": [0, 1]}, r"dual_attention_layers = \[0, 1\] is not supported"),
        ({"qk_norm": "layer_norm"}, "qk_norm = 'layer_norm' is not supported; supported: None, 'rms_norm'"),
        ({"caption_projection_dim": 7}, "caption_projection_dim = 7 is not supported; supported: 1536"),
        ({"out_channels": 32}, "out_channels = 32 is not supported"),
    ],
)
def test_what_is_not_there_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FAMILY.from_hf(PUBLISHED_CONFIG | change)


@pytest.mark.parametrize(
    ("cfg", "change", "message"),
    [
        (TINY, {"patch_size": 3}, r"model\.patch_size = 3 does not divide the sides"),
        (TINY, {"num_layers": 1}, r"model\.num_layers = 1; an MM-DiT has 2 or more"),
        (TINY, {"position_grid": 3}, r"model\.position_grid = 3; .* it must be at least as many"),
        (TOKENS, {"text_dim": 32}, r"model\.text_dim = 32 is not model\.text\.embed_dim = 24"),
        (TOKENS, {"pooled_dim": 32}, r"model\.pooled_dim = 32 is not model\.text\.embed_dim = 24"),
    ],
)
def test_impossible_sizes_are_refused(cfg, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(cfg, **change).validate(ParallelConfig())
