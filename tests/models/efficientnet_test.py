"""EfficientNet-lite0 has the published sizes and starts as the published code does."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.models.efficientnet import PRESETS, EfficientNetConfig, depthwise
from bigmodel_jax.pretrained.efficientnet import from_hf, to_hf

TINY = EfficientNetConfig.tiny()


def test_lite0_has_the_published_number_of_parameters():
    """The published table says 4.7 million. timm 1.0.31 (tf_efficientnet_lite0) counts the exact
    number, and the published weights hold it."""
    model = PRESETS["efficientnet-lite0"].make()
    assert params.count(model.spec, trainable=True) == 4_652_008
    assert (
        len(params.paths(model.spec)) == 296 - 49
    )  # of the file's tensors, the 49 counters of batch norm are not ours


def test_lite0_ends_with_a_picture_of_seven_by_seven():
    cfg = PRESETS["efficientnet-lite0"]
    strides = [stride for _, stride, _, _ in cfg.blocks()]
    assert len(strides) == 16
    assert 224 // (2 * 2 ** strides.count(2)) == 7


@pytest.mark.exhaustive
def test_initial_distributions():
    """The distributions are efficientnet_builder's: convolutions N(0, 2 / fan_out), depthwise ones
    2 / area, and the head uniform over its classes."""
    cfg = dataclasses.replace(TINY, channels=(32, 64), stem_channels=32, head_channels=128, num_classes=50)
    for path, x in params.paths(cfg.make().init(jax.random.key(0))).items():
        if path.endswith("conv/kernel"):
            outputs = 1 if "depthwise" in path else x.shape[3]
            std = (2 / (x.shape[0] * x.shape[1] * outputs)) ** 0.5
            assert float(x.std()) == pytest.approx(std, rel=5 / x.size**0.5), path
            assert abs(float(x.mean())) < 5 * std / x.size**0.5, path
        elif path == "head/kernel":
            assert 0.9 * 50**-0.5 < abs(x).max() <= 50**-0.5
        else:
            assert (x == (1.0 if path.endswith(("scale", "var")) else 0.0)).all(), path


@pytest.mark.parametrize(("stride", "width"), [(1, 3), (2, 5), (2, 3)])
def test_depthwise_on_one_cpu_device_is_the_convolution(stride, width):
    x = jax.random.normal(jax.random.key(0), (2, 9, 12, 6))
    kernel = jax.random.normal(jax.random.key(1), (width, width, 1, 6))
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 6}

    def run(x, kernel):
        out = depthwise(x, kernel, (stride, stride), "SAME", **options)
        return out, jax.vjp(lambda *a: depthwise(*a, (stride, stride), "SAME", **options), x, kernel)[1](out)

    whole = run(x, kernel)
    with sharding.use(sharding.make_mesh(ParallelConfig(), jax.devices()[:1]), Rules()):
        shifted = run(x, kernel)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), shifted, whole)


def test_config_round_trip():
    assert from_hf(to_hf(TINY)) == TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (3,)}, r"model\.widths = \(3,\) and model\.repeats = \(1, 2\) differ in length"),
        ({"channels": (8, 0)}, r"model\.channels = 0; it must be 1 or more"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change).validate(ParallelConfig())
