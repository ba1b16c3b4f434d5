"""DETR against transformers: memory, logits, boxes, loss, gradients, the loss of several layers,
export, timm's names.

Tolerance 1e-4 absolute; the logits of the reference have a standard deviation of about 1. Of the
three pictures one has no object.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.models.base import Out
from bigmodel_jax.models.detr import PRESETS
from bigmodel_jax.objectives import Detection
from bigmodel_jax.pretrained import folder
from reference import distance

pytestmark = pytest.mark.slow

TOLERANCE, NAME = 1e-4, "detr"
SIZES = {"layers": 6, "ffn_dim": 2048, "attention_heads": 8}  # of either side of the published models


def batch_of(ref):
    batch = {name: jnp.asarray(ref.arrays[name]) for name in ("image", "boxes", "classes")}
    return batch | {"weights": jnp.ones(len(batch["image"]))}


def test_logits_and_boxes(reference, measured):
    ref = reference(NAME)
    ours = jax.jit(ref.model.apply)(ref.tree, batch_of(ref)).value
    assert 0.3 < ref.arrays["logits"].std() < 30, "logits of a scale at which 1e-4 says something"
    assert ref.arrays["pred_boxes"].std(axis=1).min() > 1e-3, "queries that differ"
    worst = max(distance(ours[a], ref.arrays[b]) for a, b in (("logits", "logits"), ("boxes", "pred_boxes")))
    assert measured(NAME, "forward", worst) <= TOLERANCE


def test_gradients_of_every_parameter(reference, measured):
    """Errors are relative to the norm of the parameter's gradient, but at least to a thousandth of
    the largest norm: the first decoder layer's attention among zero queries carries nothing, and a
    key's bias adds the same to all logits of a query."""
    ref = reference(NAME)
    trainable, frozen = params.partition(ref.tree, ref.model.spec)
    assert not any("norm/scale" in path for path in params.paths(trainable["backbone"])), "batch norm is constant"

    def loss(tree, batch):
        found = Detection().loss(ref.model, params.merge(tree, frozen), batch, rng=None, train=False)
        return found.mean.total / found.mean.count

    value, ours = jax.jit(jax.value_and_grad(loss))(trainable, batch_of(ref))
    assert abs(float(value) - float(ref.arrays["loss"])) <= TOLERANCE
    ours, theirs = params.paths(ours), params.paths(ref.gradients)
    floor = 1e-3 * max(np.linalg.norm(theirs[path]) for path in ours)
    errors = {path: distance(g, theirs[path]) / max(np.linalg.norm(theirs[path]), floor) for path, g in ours.items()}
    worst = max(errors, key=errors.get)
    assert measured(NAME, "backward", errors[worst]) <= TOLERANCE, worst


def test_the_loss_of_several_layers_and_its_gradients(reference):
    """Each layer has a matching of its own."""
    ref = reference(NAME)
    arrays = {name: jnp.asarray(ref.arrays[f"layers/{name}"]) for name in ("logits", "boxes")}
    batch = batch_of(ref)

    def loss(logits, boxes):
        value = {"logits": logits[-1], "boxes": boxes[-1]}
        value |= {"layer_logits": logits[:-1].swapaxes(0, 1), "layer_boxes": boxes[:-1].swapaxes(0, 1)}
        found = Detection().score(Out(value), batch, params={}, train=True)
        return found.mean.total / found.mean.count, found.metrics

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, metrics), gradients = both(arrays["logits"], arrays["boxes"])
    assert abs(float(value) - float(ref.arrays["layers/loss"])) <= TOLERANCE
    for ours, theirs in (("class_loss", "loss_ce"), ("l1", "loss_bbox"), ("iou_loss", "loss_giou")):
        assert abs(float(metrics[ours].compute()) - float(ref.arrays[f"layers/{theirs}"])) <= TOLERANCE
    for name, gradient in zip(("logits_grad", "boxes_grad"), gradients, strict=True):
        assert np.abs(ref.arrays[f"layers/{name}"]).max() > 0.01
        assert distance(gradient, ref.arrays[f"layers/{name}"]) <= TOLERANCE


def test_export_gives_the_same_bits(reference, measured, tmp_path):
    """An import followed by an export gives every tensor of the file bit for bit, and the same
    config."""
    ref = reference(NAME)
    flat = {path: np.asarray(x) for path, x in params.paths(ref.tree).items()}
    folder.save_params(ref.family, ref.cfg, flat, tmp_path)
    theirs, ours = folder.open_weights(ref.folder), folder.open_weights(tmp_path)
    assert set(ours) == set(theirs)
    differing = [n for n in theirs if ours[n].read().tobytes() != theirs[n].read().tobytes()]
    assert measured(NAME, "export", len(differing)) == 0, differing
    assert folder.read_config(tmp_path) == (ref.family, ref.cfg)


TIMM = (
    (r"embedder\.embedder\.convolution", "conv1"),
    (r"embedder\.embedder\.normalization", "bn1"),
    *((rf"encoder\.stages\.{n}\.layers", f"layer{n + 1}") for n in range(4)),
    *((rf"layer\.{n}\.convolution", f"conv{n + 1}") for n in range(3)),
    *((rf"layer\.{n}\.normalization", f"bn{n + 1}") for n in range(3)),
    (r"shortcut\.convolution", "downsample.0"),
    (r"shortcut\.normalization", "downsample.1"),
)


def test_timm_names_of_a_resnet_are_read(reference):
    """The files of facebook/detr-resnet-50 have these names."""
    ref = reference(NAME)
    for name in folder.open_weights(ref.folder):
        theirs = name
        for pattern, replacement in TIMM:
            theirs = re.sub(rf"(conv_encoder\.model\..*?){pattern}", rf"\g<1>{replacement}", theirs)
        found = theirs
        for pattern, replacement in ref.family.renamed:
            found = re.sub(pattern, replacement, found)
        assert found == name
        assert (theirs != name) == ("conv_encoder" in name)


@pytest.mark.parametrize(("change", "said"), [
    ({"position_embedding_type": "learned"}, r"config\.json: position_embedding_type = 'learned' is not supported"),
    ({"decoder_ffn_dim": 99}, r"config\.json: decoder_ffn_dim = 99 is not supported"),
    ({"backbone_config": None, "backbone": "vgg16"}, r"config\.json: backbone = 'vgg16' is not supported; supported: resnet"),
])  # fmt: skip
def test_what_there_is_not_is_refused(reference, change, said):
    ref = reference(NAME)
    with pytest.raises(ValueError, match=said):
        ref.family.from_hf(ref.family.to_hf(ref.cfg) | change)


def test_the_published_config_is_the_preset(reference):
    published = {"use_timm_backbone": True, "backbone": "resnet50", "backbone_config": None, "num_channels": 3}
    published |= {"d_model": 256, "dropout": 0.1, "num_queries": 100, "id2label": {str(n): str(n) for n in range(91)}}
    published |= {f"{side}_{name}": x for side in ("encoder", "decoder") for name, x in SIZES.items()}
    assert reference(NAME).family.from_hf(published) == PRESETS["detr-resnet-50"]
