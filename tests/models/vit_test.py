"""ViT starts as transformers' does, has the published sizes, and cuts images as a convolution
would."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import prenorm
from bigmodel_jax.models.vit import PRESETS, ViTConfig
from bigmodel_jax.pretrained import dinov2
from bigmodel_jax.pretrained.vit import from_hf, to_hf

TINY = ViTConfig.tiny()

# Counted by timm 1.0.31 (vit_tiny_patch16_224 ... vit_huge_patch14_224, each with its head of 1,000
# classes) on the meta device; the paper rounds base, large and huge to 86, 307 and 632 million.
PUBLISHED = {
    "vit-ti/16": 5_717_416,
    "vit-s/16": 22_050_664,
    "vit-b/16": 86_567_656,
    "vit-b/32": 88_224_232,
    "vit-l/16": 304_326_632,
    "vit-h/14": 632_045_800,
    # Counted on the meta device: Dinov2Model and Dinov2WithRegistersModel of transformers 5.23,
    # without the mask token.
    "dinov2-s/14": 22_056_192,
    "dinov2-s/14-registers": 22_057_728,
    "dinov2-b/14": 86_579_712,
    "dinov2-b/14-registers": 86_582_784,
    "dinov2-l/14": 304_367_616,
    "dinov2-l/14-registers": 304_371_712,
    "dinov2-g/14": 1_136_479_232,
    "dinov2-g/14-registers": 1_136_485_376,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    assert params.count(PRESETS[name].make().spec) == PUBLISHED[name]


def test_initial_distributions():
    """ViTPreTrainedModel._init_weights draws every map, the class token and the positions from N(0,
    0.02). Norms start at 1 and biases at 0."""
    cfg = dataclasses.replace(TINY, embed_dim=128, mlp_dim=256, image_shape=(32, 32, 3))
    tree = params.paths(params.init(cfg.make().spec, jax.random.key(0)))
    for path, x in tree.items():
        if path.endswith("bias"):
            assert not x.any(), path
        elif path.endswith("norm/scale"):
            assert (x == 1).all(), path
        else:
            assert float(x.std()) == pytest.approx(0.02, rel=5 / x.size**0.5), path
            assert abs(float(x.mean())) < 5 * 0.02 / x.size**0.5, path


def test_patches_are_those_of_a_convolution():
    """Patches are taken row by row; a rest that fills no patch is left out."""
    image = jax.random.normal(jax.random.key(0), (2, 13, 18, 3))
    p = params.init(prenorm.patch_spec(4, 3, 16, init=params.normal(1.0)), jax.random.key(1))
    theirs = nn.Conv(16, (4, 4), strides=(4, 4), padding="VALID").apply({"params": p}, image)
    np.testing.assert_allclose(prenorm.embed_patches(p, image), theirs.reshape(2, 12, 16), atol=1e-5)


def test_padding_is_not_seen():
    """Tokens of segment 0 leave the others' states alone."""
    tree = params.init(TINY.make().spec, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (1, 9, TINY.embed_dim))
    segments = jnp.array([[1] * 6 + [0] * 3])
    together = prenorm.encode(TINY, tree["layers"], x, segments=segments)
    np.testing.assert_allclose(together[:, :6], prenorm.encode(TINY, tree["layers"], x[:, :6]), atol=1e-5)


@pytest.mark.parametrize("shape", [(24, 24, 3), (24, 36, 1)])
def test_config_round_trip(shape):
    cfg = dataclasses.replace(TINY, image_shape=shape, activation="gelu_tanh")
    assert from_hf(to_hf(cfg)) == cfg


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, r"model\.num_heads = 3 does not divide model\.embed_dim = 32"),
        ({"patch_size": 9}, r"model\.patch_size = 9;.*model\.image_shape = \(8, 8, 1\)"),
        ({"head": "pixels", "patch_size": 5}, r"model\.patch_size = 5 does not divide the sides of"),
        ({"num_layers": 0}, r"model\.num_layers = 0; it must be 1 or more"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change).validate(ParallelConfig())


def test_dinov2_config_round_trip():
    cfg = dataclasses.replace(TINY, head="class_and_mean", layer_scale=0.3, gated_mlp=True, mlp_dim=88)
    assert dinov2.from_hf("class_and_mean", False, dinov2.to_hf("class_and_mean", False, cfg)) == cfg
    with pytest.raises(ValueError, match=r"model\.mlp_dim = 90: DINOv2's is two thirds of a multiple"):
        dinov2.to_hf("class_and_mean", False, dataclasses.replace(cfg, mlp_dim=90))
    with pytest.raises(ValueError, match=r"model\.num_registers = 2: the architecture has .* no registers"):
        dinov2.to_hf("class_and_mean", False, dataclasses.replace(cfg, num_registers=2))


def test_each_patch_gives_its_own_pixels():
    """Without layers between, the logits of a pixel have a gradient at the pixels of its own patch
    and nowhere else."""
    cfg = dataclasses.replace(TINY, head="pixels", image_shape=(8, 12, 1))
    tree = params.init(cfg.make().spec, jax.random.key(0))
    alone = cfg.make().parts

    def logit(image):
        outside = alone.outside(tree)
        entry = alone.enter(outside, {"image": image}, rng=None, train=False, cache=None)
        return alone.leave(outside, entry, entry.x, None, {}, train=False).value[0, 5, 2].sum()

    seen = np.asarray(jax.grad(logit)(jax.random.normal(jax.random.key(1), (1, 8, 12, 1))))[0, :, :, 0] != 0
    assert seen[4:, :4].all()
    assert seen.sum() == 16


def test_heads_that_the_tensor_axis_cannot_split_are_refused():
    with pytest.raises(ValueError, match=r"model\.num_heads = 4 is not divisible by parallel\.tensor = 3"):
        TINY.validate(ParallelConfig(tensor=3))
