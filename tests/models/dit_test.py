"""DiT has the published sizes, starts as the identity, and hides labels only in training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import prenorm
from bigmodel_jax.models.dit import PRESETS, DiTConfig, positions
from bigmodel_jax.pretrained.dit import from_hf, to_hf

TINY = DiTConfig.tiny()

# Counted by the public code (facebookresearch/DiT, models.py: DiT_models, torch 2.13.0), its fixed
# positions included; the paper gives 33, 130, 458 and 675 million for patches of 2.
PUBLISHED = {
    "dit-s/2": 32_963_360,
    "dit-s/4": 32_945_024,
    "dit-s/8": 33_148_160,
    "dit-b/2": 130_512_416,
    "dit-b/4": 130_475_648,
    "dit-b/8": 130_881_536,
    "dit-l/2": 458_102_816,
    "dit-l/4": 458_053_760,
    "dit-l/8": 458_594_816,
    "dit-xl/2": 675_129_632,
    "dit-xl/4": 675_074_432,
    "dit-xl/8": 675_683_072,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    cfg = PRESETS[name]
    assert params.count(cfg.make().spec) + positions(cfg).size == PUBLISHED[name]


def batch_of(cfg, n=3):
    rng = np.random.default_rng(0)
    image = rng.standard_normal((n, *cfg.image_shape), np.float32)
    return {"image": image, "timestep": np.array([0, 5, 999])[:n], "label": np.arange(n)}


@pytest.mark.exhaustive
def test_initial_distributions():
    """The distributions are those of initialize_weights in the public code."""
    cfg = dataclasses.replace(TINY, embed_dim=128, zero_init=True, num_classes=100)
    D = 128
    attn, mlp = (2 / (4 * D)) ** 0.5, (2 / (5 * D)) ** 0.5
    stds = {
        **dict.fromkeys(("attn/q", "attn/k", "attn/v"), attn),
        "attn/o": D**-0.5,
        **dict.fromkeys(("mlp/up/kernel", "mlp/down/kernel"), mlp),
        "patches/kernel": (2 / (4 + D)) ** 0.5,
        **dict.fromkeys(("time/up/kernel", "time/down/kernel", "labels/table"), 0.02),
    }
    for path, x in params.paths(params.init(cfg.make().spec, jax.random.key(0))).items():
        std = next((s for end, s in stds.items() if path.endswith(end)), None)
        if std is None:
            assert not x.any(), path
        else:
            assert float(x.std()) == pytest.approx(std, rel=5 / x.size**0.5), path


def test_a_fresh_model_answers_zero():
    cfg = dataclasses.replace(TINY, zero_init=True)
    tree = params.init(cfg.make().spec, jax.random.key(0))
    assert not cfg.make().apply(tree, batch_of(cfg)).value.any()


def test_unpatchify_undoes_patchify():
    cfg = dataclasses.replace(TINY, image_shape=(4, 8, 3))
    image = jax.random.normal(jax.random.key(0), (2, 4, 8, 3))
    flat = prenorm.patchify(image, cfg.patch_size).reshape(2, 8, -1)
    np.testing.assert_array_equal(prenorm.unpatchify(flat, cfg.image_shape, cfg.patch_size), image)


def test_labels_are_hidden_in_training_alone():
    cfg = dataclasses.replace(TINY, label_dropout=0.999)
    model, batch = cfg.make(), batch_of(cfg)
    tree = params.init(model.spec, jax.random.key(0))
    hidden = model.apply(tree, batch | {"label": np.full(3, cfg.num_classes)}).value
    train = model.apply(tree, batch, rng=jax.random.key(1), train=True).value
    np.testing.assert_array_equal(train, hidden)
    assert np.abs(model.apply(tree, batch, rng=jax.random.key(1)).value - hidden).max() > 1e-5


def test_timesteps_and_labels_matter():
    model, batch = TINY.make(), batch_of(TINY)
    tree = params.init(model.spec, jax.random.key(0))
    before = model.apply(tree, batch).value
    for change in ({"timestep": jnp.array([1, 6, 998])}, {"label": jnp.array([3, 4, 5])}):
        assert np.abs(model.apply(tree, batch | change).value - before).max() > 1e-5


def test_config_round_trip():
    assert from_hf(to_hf(TINY)) == TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 3}, r"model\.patch_size = 3 does not divide the sides"),
        ({"embed_dim": 30, "num_heads": 3}, r"model\.embed_dim = 30; it must be a multiple of 4"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change).validate(ParallelConfig())
