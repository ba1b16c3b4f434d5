"""ResNet starts as transformers' does and has the published sizes."""

import dataclasses

import jax
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models.resnet import PRESETS, ResNetConfig
from bigmodel_jax.pretrained.resnet import from_hf, to_hf

TINY = ResNetConfig.tiny()

# Counted by timm 1.0.31 (resnet18 ... resnet152, which are torchvision's) on the meta device;
# statistics are not counted.
PUBLISHED = {
    "resnet-18": 11_689_512,
    "resnet-34": 21_797_672,
    "resnet-50": 25_557_032,
    "resnet-101": 44_549_160,
    "resnet-152": 60_192_808,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    assert params.count(PRESETS[name].make().spec, trainable=True) == PUBLISHED[name]


@pytest.mark.exhaustive
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_initial_distributions(block):
    """ResNetPreTrainedModel._init_weights draws convolutions from N(0, 2 / fan_out). The head has
    torch's uniform distribution."""
    cfg = dataclasses.replace(TINY, block=block, depths=(1, 1), channels=(64, 128), stem_channels=32, num_classes=50)
    for path, x in params.paths(cfg.make().init(jax.random.key(0))).items():
        if path.endswith("conv/kernel"):
            std = (2 / (x.shape[0] * x.shape[1] * x.shape[3])) ** 0.5
            assert float(x.std()) == pytest.approx(std, rel=5 / x.size**0.5), path
            assert abs(float(x.mean())) < 5 * std / x.size**0.5, path
        elif path.startswith("head"):
            bound = 128**-0.5
            assert 0.9 * bound < abs(x).max() <= bound, path
            assert float(x.std()) == pytest.approx(bound / 3**0.5, rel=4 / x.size**0.5), path
        else:
            assert (x == (1.0 if path.endswith(("scale", "var")) else 0.0)).all(), path


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_stems(stem):
    """The `imagenet` stem keeps a quarter of height and width, and the `cifar` stem keeps all. The
    sizes of the kernels tell them apart."""
    spec = params.paths(dataclasses.replace(TINY, stem=stem).make().spec)
    assert spec["stem/conv0/conv/kernel"].shape == ((7, 7, 1, 8) if stem == "imagenet" else (3, 3, 1, 8))


def test_config_round_trip():
    cfg = dataclasses.replace(TINY, image_shape=(224, 224, 3))
    assert from_hf(to_hf(cfg)) == cfg
    with pytest.raises(ValueError, match=r"model\.stem = 'cifar'"):
        to_hf(dataclasses.replace(cfg, stem="cifar"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (1, 1, 1)}, r"model\.depths = \(1, 1, 1\) and model\.channels = \(16, 32\) differ in length"),
        ({"channels": (16, 30)}, r"model\.channels = \(16, 30\): a bottleneck needs multiples of 4"),
        ({"depths": (1, 0)}, r"model\.depths = 0; it must be 1 or more"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change).validate(ParallelConfig())
