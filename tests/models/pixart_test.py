"""PixArt has the published sizes, starts as published, and reads its text, but neither padding nor
hidden texts."""

import dataclasses

import jax
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import PixArtConfig, TextToImageConfig
from bigmodel_jax.models.pixart import PRESETS, positions
from bigmodel_jax.pretrained.pixart import from_hf, to_hf

TINY, TOKENS = PixArtConfig.tiny(), TextToImageConfig.tiny()

# Counted by diffusers 0.42.1: PixArtTransformer2DModel(sample_size=32 / 64 / 128,
# caption_channels=4096, use_additional_conditions=False) on the meta device. The paper says 0.6
# billion (table 1).
PUBLISHED = 610_856_096


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    assert params.count(PRESETS[name].make().spec) == PUBLISHED


def batch_of(cfg, n=3):
    rng = np.random.default_rng(0)
    segments = np.array([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]], np.int32)[:n]
    batch = {"image": rng.standard_normal((n, *cfg.image_shape), np.float32), "timestep": np.array([0, 5, 999])[:n]}
    if hasattr(cfg, "text"):
        return batch | {"tokens": rng.integers(1, 64, (n, 6)).astype(np.int32), "segment_ids": segments}
    return batch | {"text_states": rng.standard_normal((n, 6, cfg.text_dim), np.float32), "segment_ids": segments}


def test_initial_distributions():
    """The distributions are those of initialize_weights in the public code."""
    D = 128
    cfg = dataclasses.replace(TINY, embed_dim=D, zero_init=True, text_dim=96)
    mlp = (2 / (5 * D)) ** 0.5
    stds = {
        **dict.fromkeys(("/attn/q", "/attn/k", "/attn/v"), (2 / (4 * D)) ** 0.5),
        "/attn/o": D**-0.5,
        "text_attn/q": D**-0.5,
        **dict.fromkeys(("text_attn/k", "text_attn/v"), (2 / (3 * D)) ** 0.5),
        **dict.fromkeys(("mlp/up/kernel", "mlp/down/kernel"), mlp),
        "patches/kernel": (2 / (4 + D)) ** 0.5,
        **dict.fromkeys(("time/up/kernel", "time/down/kernel", "time_modulation/kernel"), 0.02),
        **dict.fromkeys(("text_projection/up/kernel", "text_projection/down/kernel"), 0.02),
        **dict.fromkeys(("layers/modulation", "modulation"), D**-0.5),
    }
    for path, x in params.paths(params.init(cfg.make().spec, jax.random.key(0))).items():
        std = next((s for end, s in stds.items() if path.endswith(end)), None)
        if std is None:
            assert not x.any(), path
        else:
            assert float(x.std()) == pytest.approx(std, rel=5 / x.size**0.5), path


@pytest.mark.parametrize("cfg", [TINY, TOKENS], ids=["states", "tokens"])
def test_a_fresh_model_answers_zero(cfg):
    cfg = dataclasses.replace(cfg, zero_init=True)
    tree = params.init(cfg.make().spec, jax.random.key(0))
    assert not jax.jit(cfg.make().apply)(tree, batch_of(cfg)).value.any()


@pytest.mark.parametrize("cfg", [TINY, TOKENS], ids=["states", "tokens"])
def test_the_text_matters_and_its_padding_does_not(cfg):
    model, batch = cfg.make(), batch_of(cfg)
    tree = params.init(model.spec, jax.random.key(0))
    apply = jax.jit(lambda batch: model.apply(tree, batch).value)
    key, before = "tokens" if hasattr(cfg, "text") else "text_states", apply(batch)
    changed = batch[key].copy()
    changed[:, -1] = 7
    after = apply(batch | {key: changed})
    np.testing.assert_allclose(after[1:], before[1:], atol=1e-6)
    assert np.abs(after[0] - before[0]).max() > 1e-5


def test_texts_are_hidden_in_training_alone_and_where_asked():
    cfg = dataclasses.replace(TINY, text_dropout=0.999)
    model, batch = cfg.make(), batch_of(cfg)
    tree = params.init(model.spec, jax.random.key(0))
    apply = jax.jit(lambda batch, **options: model.apply(tree, batch, **options).value, static_argnames="train")
    told = apply(batch)
    hidden = apply(batch | {"hidden": np.array([True, False, True])})
    np.testing.assert_array_equal(hidden[1], told[1])
    assert np.abs(hidden - told)[::2].max() > 1e-5
    nothing = apply(batch | {"text_states": 0 * batch["text_states"]})
    np.testing.assert_allclose(hidden[::2], nothing[::2], atol=1e-6)
    train = apply(batch, rng=jax.random.key(1), train=True)
    np.testing.assert_allclose(train, nothing, atol=1e-6)
    np.testing.assert_array_equal(apply(batch, rng=jax.random.key(1)), told)


def test_positions_are_divided_by_their_scale():
    wide = dataclasses.replace(TINY, image_shape=(16, 16, 1), position_scale=2.0)
    every_second = positions(wide).reshape(8, 8, -1)[::2, ::2].reshape(16, -1)
    np.testing.assert_allclose(every_second, positions(TINY), atol=1e-6)


def test_config_round_trip():
    assert from_hf(to_hf(TINY)) == TINY


PUBLISHED_CONFIG = {
    "_class_name": "Transformer2DModel",
    "sample_size": 64,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "norm_type": "ada_norm_single",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_eps": 1e-6,
}


def test_published_files_are_the_presets():
    assert from_hf(PUBLISHED_CONFIG) == PRESETS["pixart-xl/2-512"]
    sigma = PUBLISHED_CONFIG | {"sample_size": 128, "use_additional_conditions": False}
    assert from_hf(sigma) == PRESETS["pixart-sigma-xl/2-1024"]


def test_embeddings_of_the_picture_size_are_refused():
    with pytest.raises(ValueError, match="use_additional_conditions = true is not supported"):
        from_hf(PUBLISHED_CONFIG | {"sample_size": 128})


@pytest.mark.parametrize(
    ("cfg", "change", "message"),
    [
        (TINY, {"patch_size": 3}, r"model\.patch_size = 3 does not divide the sides"),
        (TINY, {"position_scale": 0.0}, r"model\.position_scale = 0\.0; it must be above 0"),
        (TOKENS, {"text_dim": 32}, r"model\.text_dim = 32 is not model\.text\.embed_dim = 24"),
    ],
)
def test_impossible_sizes_are_refused(cfg, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(cfg, **change).validate(ParallelConfig())
