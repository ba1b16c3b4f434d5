"""AlexNet and VGG have torchvision's sizes, initial values and averaging, and name what they cannot
be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import AlexNetConfig, VGGConfig, alexnet, vgg

# As torchvision's documentation of each model's weights states them (num_params).
PARAMETERS = {
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11-bn": 132_868_840,
    "vgg13-bn": 133_053_736,
    "vgg16-bn": 138_365_992,
    "vgg19-bn": 143_678_248,
}
PRESETS = alexnet.PRESETS | vgg.PRESETS
TINY = {"alexnet": AlexNetConfig.tiny(), "vgg": VGGConfig.tiny()}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_has_the_published_number_of_parameters(name):
    assert set(PARAMETERS) == set(PRESETS)
    assert params.count(PRESETS[name].make().spec, trainable=True) == PARAMETERS[name]


def test_names_have_the_places_of_the_published_steps():
    """torchvision's vgg16_bn ends its features with convolution 40, and has dense layers 0, 3 and
    6."""
    names = {path.partition("/")[0] for path in params.paths(PRESETS["vgg16-bn"].make().spec)}
    assert {"conv0", "norm1", "conv40", "norm41", "dense0", "dense3", "dense6"} <= names
    names = {path.partition("/")[0] for path in params.paths(PRESETS["alexnet"].make().spec)}
    assert names == {"conv0", "conv3", "conv6", "conv8", "conv10", "dense1", "dense4", "dense6"}


@pytest.mark.parametrize(("shape", "to"), [((11, 8), 7), ((2, 1), 6), ((14, 21), 7), ((7, 7), 7)])
def test_the_averages_are_those_of_the_bins(shape, to):
    x = np.random.default_rng(0).standard_normal((2, *shape, 3)).astype(np.float32)
    expected = np.zeros((2, to, to, 3), np.float32)
    for i, j in np.ndindex(to, to):
        rows, columns = (
            slice(int(np.floor(n * size / to)), int(np.ceil((n + 1) * size / to)))
            for n, size in zip((i, j), shape, strict=True)
        )
        expected[:, i, j] = x[:, rows, columns].mean((1, 2))
    np.testing.assert_allclose(vgg.average_to(jnp.asarray(x), to), expected, atol=1e-6)


def test_initial_values_are_the_reference_s():
    """VGG draws He's normal by fan-out and N(0, 0.01); AlexNet draws torch's uniform by fan-in,
    also for biases."""
    wide = dataclasses.replace(TINY["vgg"], channels=(32, 64), hidden_dim=256)
    for path, x in params.paths(wide.make().init(jax.random.key(0))).items():
        if path.endswith("kernel"):
            std = (2 / (9 * x.shape[3])) ** 0.5 if path.startswith("conv") else 0.01
            assert float(x.std()) == pytest.approx(std, rel=5 / x.size**0.5), path
        else:
            assert (x == (1.0 if path.endswith(("scale", "var")) else 0.0)).all(), path
    tree = params.paths(TINY["alexnet"].make().init(jax.random.key(0)))
    for path, x in tree.items():
        bound = np.prod(tree[path.rpartition("/")[0] + "/kernel"].shape[:-1]) ** -0.5
        assert 0.5 * bound < abs(x).max() <= bound, path


@pytest.mark.parametrize("name", TINY)
def test_images_of_which_nothing_is_left_are_refused(name):
    small = dataclasses.replace(TINY[name], image_shape=(64, 3, 1))
    with pytest.raises(ValueError, match="the pooling leaves nothing of 3 pixels"):
        small.validate(ParallelConfig())


@pytest.mark.parametrize("name", TINY)
def test_dropout_is_of_training_alone(name):
    cfg = dataclasses.replace(TINY[name], dropout=0.5)
    model = cfg.make()
    tree, batch = model.init(jax.random.key(0)), {"image": jnp.ones((2, *cfg.image_shape))}
    plain = TINY[name].make().apply(tree, batch).value
    np.testing.assert_array_equal(model.apply(tree, batch, rng=jax.random.key(1)).value, plain)
    first, second = (model.apply(tree, batch, rng=jax.random.key(n), train=True).value for n in (1, 2))
    assert (first != second).any()
