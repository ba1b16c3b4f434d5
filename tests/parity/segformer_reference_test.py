"""SegFormer against transformers: logits, stages, loss with ignored pixels, gradients, batch norm,
training, export.

Tolerance 1e-4 absolute; the logits of the reference have a standard deviation of about 1.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.models import segformer
from bigmodel_jax.objectives import Segmentation
from bigmodel_jax.pretrained import folder, names
from reference import distance

TOLERANCE, STEPS, NAME = 1e-4, 20, "segformer"


def mean_loss(model, tree, batch, train=True):
    batch = dict(batch, weights=jnp.ones(len(batch["mask"])))
    loss = Segmentation().loss(model, tree, batch, rng=None, train=train)
    return loss.mean.total / loss.mean.count, loss.updates


def batch_of(ref, prefix=""):
    masks = jnp.asarray(ref.arrays[prefix + "mask"], jnp.int32)
    return {"image": jnp.asarray(ref.arrays[prefix + "image"]), "mask": masks}


@pytest.mark.slow
def test_logits_and_the_state_of_every_stage(reference, measured):
    ref = reference(NAME)
    states = jax.jit(functools.partial(segformer.encode, ref.cfg))(ref.tree, batch_of(ref)["image"])
    theirs = [ref.arrays[f"hidden_states/{n}"] for n in range(len(ref.cfg.depths))]
    ours = jax.jit(ref.model.apply)(ref.tree, batch_of(ref)).value
    assert 0.3 < ref.arrays["logits"].std() < 30, "logits of a scale at which 1e-4 says something"
    worst = max(distance(a, b) for a, b in zip([*states, ours], [*theirs, ref.arrays["logits"]], strict=True))
    assert measured(NAME, "forward", worst) <= TOLERANCE


@pytest.mark.exhaustive
def test_rows_do_not_see_each_other(reference, measured):
    ref = reference(NAME)
    ours = jax.jit(ref.model.apply)(ref.tree, {"image": batch_of(ref)["image"][-1:]}).value
    assert measured(NAME, "forward", distance(ours, ref.arrays["logits"][-1:])) <= TOLERANCE


@pytest.mark.exhaustive
def test_loss_of_an_evaluation_leaves_out_ignored_pixels(reference):
    """The logits are resized to the masks. A tenth of the pixels has the label 255."""
    ref = reference(NAME)
    assert 0.05 < (ref.arrays["mask"] == 255).mean() < 0.2
    value, _ = jax.jit(functools.partial(mean_loss, ref.model, train=False))(ref.tree, batch_of(ref))
    assert abs(float(value) - float(ref.arrays["loss_eval"])) <= TOLERANCE


@pytest.mark.slow
def test_gradients_of_every_parameter(reference, measured):
    """Errors are relative to the norm of the parameter's gradient. The model is in training, so
    batch norm reads the batch."""
    ref = reference(NAME)
    trainable, frozen = params.partition(ref.tree, ref.model.spec)

    def loss(tree, batch):
        return mean_loss(ref.model, params.merge(tree, frozen), batch)[0]

    value, ours = jax.jit(jax.value_and_grad(loss))(trainable, batch_of(ref))
    assert abs(float(value) - float(ref.arrays["loss"])) <= TOLERANCE
    ours, theirs = params.paths(ours), params.paths(ref.gradients)
    # A key bias adds the same to all logits of a query, and batch norm takes the projections'
    # biases away: zeros.
    errors = {path: distance(g, theirs[path]) / max(np.linalg.norm(theirs[path]), 1e-3) for path, g in ours.items()}
    worst = max(errors, key=errors.get)
    assert measured(NAME, "backward", errors[worst]) <= TOLERANCE, worst


@pytest.mark.slow
def test_running_statistics_after_a_training_step(reference, measured):
    """torch keeps the unbiased variance and Flax the biased one. The test removes the factor n / (n
    - 1), for n values a channel."""
    ref = reference(NAME)
    _, updates = jax.jit(functools.partial(mean_loss, ref.model))(ref.tree, batch_of(ref))
    before, worst = params.paths(ref.tree), 0.0
    pieces = list(names.pieces(ref.family.rows, params.paths(ref.model.spec), ref.cfg))
    theirs = {p.row.ours: ref.arrays[f"running/{p.name}"] for p in pieces if "running" in p.name}
    assert set(theirs) == set(updates)
    n = ref.arrays["logits"][..., 0].size
    for path, ours in updates.items():
        if path.endswith("var"):
            ours = 0.9 * before[path] + (ours - 0.9 * before[path]) * n / (n - 1)
        worst = max(worst, distance(ours, theirs[path]))
    assert measured(NAME, "forward", worst) <= TOLERANCE


@pytest.mark.exhaustive  # its gradients are compared above, and AdamW by the decoders' curves
def test_training_curve(reference, measured):
    """Both sides take 20 steps of AdamW from the same weights on the same batches."""
    ref = reference(NAME)
    trainable, frozen = params.partition(ref.tree, ref.model.spec)
    mask = params.partition(params.map_spec(lambda p: p.decay, ref.model.spec), ref.model.spec)[0]
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(3e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=mask)
    )

    @jax.jit
    def step(tree, state, batch):
        value, gradient = jax.value_and_grad(lambda t: mean_loss(ref.model, params.merge(t, frozen), batch)[0])(tree)
        updates, state = tx.update(gradient, state, tree)
        return optax.apply_updates(tree, updates), state, value

    state, losses, batches = tx.init(trainable), [], batch_of(ref, "train/")
    for n in range(STEPS):
        trainable, state, value = step(trainable, state, {k: v[n % len(v)] for k, v in batches.items()})
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.1, "it learns nothing"
    assert measured(NAME, "training", distance(losses, ref.arrays["train/losses"])) <= 1e-3


def test_export_gives_the_same_bits(reference, measured, tmp_path):
    """An import followed by an export gives every tensor of the file bit for bit, and the same
    config."""
    ref = reference(NAME)
    flat = {path: np.asarray(x) for path, x in params.paths(ref.tree).items()}
    folder.save_params(ref.family, ref.cfg, flat, tmp_path)
    theirs, ours = folder.open_weights(ref.folder), folder.open_weights(tmp_path)
    theirs = {n: t for n, t in theirs.items() if not n.endswith("num_batches_tracked")}  # a counter nothing reads
    assert set(ours) == set(theirs)
    differing = [n for n in theirs if ours[n].read().tobytes() != theirs[n].read().tobytes()]
    assert measured(NAME, "export", len(differing)) == 0, differing
    assert folder.read_config(tmp_path) == (ref.family, ref.cfg)


def test_a_list_of_another_length_than_there_are_stages_is_refused(reference):
    ref = reference(NAME)
    with pytest.raises(ValueError, match=r"config\.json: sr_ratios = \[4, 2\]; it must have num_encoder_blocks = 3"):
        ref.family.from_hf(ref.family.to_hf(ref.cfg) | {"sr_ratios": [4, 2]})
