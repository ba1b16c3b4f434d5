"""CLIP and SigLIP against transformers: same weights, same embeddings, pair logits, states of both
towers and gradients.

Tolerance 1e-4 absolute; embeddings have length 1, the logits of pairs are cosines times exp(1.7) =
5.5.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.objectives import Contrastive
from bigmodel_jax.objectives.contrastive import pair_logits
from bigmodel_jax.pretrained import folder
from reference import distance, record_layers

TOLERANCE = 1e-4
KINDS = {"clip": "softmax", "siglip": "sigmoid"}

every_family = pytest.mark.parametrize("name", KINDS)


def batch_of(ref):
    tokens, mask = (jnp.asarray(ref.arrays[n], jnp.int32) for n in ("tokens", "mask"))
    image = jnp.asarray(ref.arrays["image"])
    return {"image": image, "tokens": tokens, "segment_ids": mask, "weights": jnp.ones(len(image))}


@every_family
def test_embeddings_and_logits(name, reference, measured):
    """The texts have different lengths: CLIP masks padding and SigLIP reads it, as in their
    training."""
    ref = reference(name)
    ours = jax.jit(ref.model.apply)(ref.tree, batch_of(ref)).value
    assert ref.arrays["logits"].std() > 0.3, "logits of a scale at which 1e-4 says something"
    worst = distance(ours, np.stack([ref.arrays["image_embeds"], ref.arrays["text_embeds"]], axis=1))
    assert measured(name, "forward", worst) <= TOLERANCE
    assert measured(name, "forward", distance(pair_logits(ref.tree, ours), ref.arrays["logits"])) <= TOLERANCE


# The embeddings and the gradients of every parameter pass through all layers of both towers.
@pytest.mark.exhaustive
@every_family
def test_hidden_states(name, reference, measured, monkeypatch):
    """The test compares the input of each layer of the image's tower, then of the text's."""
    ref = reference(name)
    stacks = record_layers(monkeypatch)
    ref.model.apply(ref.tree, batch_of(ref))
    states = [x for states in stacks for x in states[:-1]]
    theirs = [ref.arrays[f"{tower}_states/{n}"] for tower in ("vision", "text") for n in range(2)]
    mask = ref.arrays["mask"][..., None]
    worst = 0.0
    for n, (a, b) in enumerate(zip(states, theirs, strict=True)):
        a, b = (a * mask, b * mask) if n >= 2 else (a, b)  # what stands in places of padding is read by nothing
        worst = max(worst, distance(a, b))
    assert measured(name, "forward", worst) <= TOLERANCE


@every_family
def test_gradients_of_every_parameter(name, reference, measured):
    """Errors are relative to the norm of the parameter's gradient."""
    ref = reference(name)

    def loss(tree):
        mean = Contrastive(kind=KINDS[name]).loss(ref.model, tree, batch_of(ref), rng=None, train=True).mean
        return mean.total / mean.count

    value, ours = jax.jit(jax.value_and_grad(loss))(ref.tree)
    assert measured(name, "forward", abs(float(value) - float(ref.arrays["loss"]))) <= TOLERANCE
    theirs = params.paths(ref.gradients)
    errors = {}
    for path, gradient in params.paths(ours).items():
        # A key bias adds the same to all logits of a query: its gradient is zero, and noise has no
        # scale.
        errors[path] = distance(gradient, theirs[path]) / max(np.linalg.norm(theirs[path]), 1e-3)
    worst = max(errors, key=errors.get)
    assert measured(name, "backward", errors[worst]) <= TOLERANCE, worst


@every_family
def test_export_gives_the_same_bits(name, reference, measured, tmp_path):
    """An import followed by an export gives every tensor of the file bit for bit, and the same
    config."""
    ref = reference(name)
    flat = {path: np.asarray(x) for path, x in params.paths(ref.tree).items()}
    folder.save_params(ref.family, ref.cfg, flat, tmp_path)
    theirs, ours = folder.open_weights(ref.folder), folder.open_weights(tmp_path)
    assert set(ours) == set(theirs)
    differing = [n for n in theirs if ours[n].read().tobytes() != theirs[n].read().tobytes()]
    assert measured(name, "export", len(differing)) == 0, differing
    assert folder.read_config(tmp_path) == (ref.family, ref.cfg)
