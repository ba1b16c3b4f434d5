"""SegFormer has the published sizes, one meaning for each tuple, and logits at a quarter of any
image's sides."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models.segformer import PRESETS, SegformerConfig
from bigmodel_jax.pretrained.segformer import from_hf, to_hf

TINY = SegformerConfig.tiny()

# Counted on the meta device: SegformerForSemanticSegmentation of transformers 5.23 with ADE20K's
# 150 classes.
PUBLISHED = {
    "segformer-b0": 3_752_694,
    "segformer-b1": 13_715_798,
    "segformer-b2": 27_461_974,
    "segformer-b3": 47_337_814,
    "segformer-b4": 64_108_374,
    "segformer-b5": 84_708_694,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    assert params.count(PRESETS[name].make().spec, trainable=True) == PUBLISHED[name]


@pytest.mark.parametrize("shape", [(32, 32, 1), (45, 70, 1), (33, 8, 1)], ids=str)
def test_logits_of_any_aspect_ratio(shape):
    model = TINY.make()
    tree = jax.eval_shape(lambda: params.init(model.spec, jax.random.key(0)))
    out = jax.eval_shape(model.apply, tree, {"image": jax.ShapeDtypeStruct((2, *shape), jnp.float32)})
    assert out.value.shape == (2, -(-shape[0] // 4), -(-shape[1] // 4), TINY.num_classes)


def test_config_round_trip():
    cfg = dataclasses.replace(TINY, image_shape=(512, 512, 3), activation="gelu_tanh", dropout=0.25)
    assert from_hf(to_hf(cfg)) == cfg


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": (3, 4)}, r"model\.num_heads = \(3, 4\): 3 does not divide the 16 channels of stage 0"),
        ({"reductions": (2,)}, r"model\.reductions = \(2,\) and model\.depths = \(1, 2\) differ in length"),
        ({"image_shape": (4, 32, 1)}, r"model\.image_shape = \(4, 32, 1\): a stage sees 1 x 8 places"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change).validate(ParallelConfig())
