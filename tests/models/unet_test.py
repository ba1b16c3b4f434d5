"""U-Net gives logits for each pixel of any image, starts with the paper's width, and refuses
impossible levels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models.unet import PRESETS, UNetConfig, halved

TINY = UNetConfig.tiny()


def test_the_default_is_the_papers_network():
    """The weights of figure 1 are counted by hand: kernels of 3x3 and 2x2, and 1x1 in the last
    convolution. Each of the 18 padded convolutions has the scale and bias of a batch norm, where
    the paper has one bias."""
    c = (64, 128, 256, 512, 1024)
    down = sum(9 * (a * b + b * b) for a, b in zip((1, *c), c, strict=False))
    up = sum(4 * 2 * n * n + n + 9 * (2 * n * n + n * n) for n in c[:-1])
    norms = 2 * 2 * (sum(c) + sum(c[:-1]))
    assert params.count(PRESETS["unet"].make().spec, trainable=True) == down + up + norms + 64 * 2 + 2


@pytest.mark.exhaustive
def test_each_pixel_of_an_odd_image_has_logits():
    """A pixel at the lower right counts as well, although padding begins beside it."""
    model = TINY.make()
    tree = model.init(jax.random.key(0))
    image = jax.random.normal(jax.random.key(1), (1, 13, 7, 1))
    logits = lambda x: model.apply(tree, {"image": x}).value  # noqa: E731
    assert logits(image).shape == (1, 13, 7, TINY.num_classes)
    gradient = jax.grad(lambda x: logits(x)[0, -1, -1].sum())(image)
    assert gradient[0, -1, -1].any()


def test_halves_take_the_largest():
    x = np.random.default_rng(0).standard_normal((2, 6, 8, 3)).astype(np.float32)
    expected = x.reshape(2, 3, 2, 4, 2, 3).max((2, 4))
    np.testing.assert_array_equal(halved(jnp.asarray(x)), expected)
    gradient = jax.grad(lambda x: halved(x).sum())(jnp.asarray(x))
    np.testing.assert_array_equal(gradient, x == expected.repeat(2, 1).repeat(2, 2))


def test_too_many_levels_are_refused():
    with pytest.raises(ValueError, match=r"model\.channels = .*; it must have 1 to 8 entries, one a level"):
        dataclasses.replace(TINY, channels=(8,) * 9).validate(ParallelConfig())
