"""Image classifiers against transformers: same weights, same logits, hidden states, gradients and
training curves.

Tolerance 1e-4 absolute; the logits of these models have a standard deviation of about 1.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.models.resnet import ResNet
from bigmodel_jax.models.vgg import Network
from bigmodel_jax.objectives import Classification
from bigmodel_jax.pretrained import folder, names
from reference import distance, read, record_layers

TOLERANCE = 1e-4
DINOS = ["dinov2", "dinov2_registers"]
PLAIN = ["alexnet", pytest.param("vgg", marks=pytest.mark.exhaustive), "vgg_bn"]
FAMILIES = ["vit", *DINOS, "resnet", "resnet_basic", "efficientnet", *PLAIN]
RESNETS = ["resnet", "resnet_basic"]
TRAINED = ["vit", "dinov2", "vgg", "vgg_bn"]
STEPS = 20

every_family = pytest.mark.parametrize("name", FAMILIES)


def mean_loss(model, tree, batch):
    batch = dict(batch, weights=jnp.ones(len(batch["label"])))
    loss = Classification().loss(model, tree, batch, rng=None, train=True)
    return loss.mean.total / loss.mean.count, loss.updates


def batch_of(ref, prefix=""):
    return {"image": jnp.asarray(ref.arrays[prefix + "image"]), "label": jnp.asarray(ref.arrays[prefix + "label"])}


@every_family
def test_logits(name, reference, measured):
    ref = reference(name)
    ours = jax.jit(ref.model.apply)(ref.tree, batch_of(ref)).value
    assert 0.3 < ref.arrays["logits"].std() < 30, "logits of a scale at which 1e-4 says something"
    assert measured(name, "forward", distance(ours, ref.arrays["logits"])) <= TOLERANCE


@every_family
def test_rows_do_not_see_each_other(name, reference, measured):
    ref = reference(name)
    ours = jax.jit(ref.model.apply)(ref.tree, {"image": batch_of(ref)["image"][-1:]}).value
    assert measured(name, "forward", distance(ours, ref.arrays["logits"][-1:])) <= TOLERANCE


@pytest.mark.parametrize("name", ["vit", *DINOS])
def test_hidden_states(name, reference, measured, monkeypatch):
    """The test compares the input of each layer, and the output of the last."""
    ref = reference(name)
    stacks = record_layers(monkeypatch)
    ref.model.apply(ref.tree, batch_of(ref))
    (states,) = stacks
    theirs = [ref.arrays[f"hidden_states/{n}"] for n in range(len(states))]
    assert f"hidden_states/{len(states)}" not in ref.arrays
    worst = max(distance(a, b) for a, b in zip(states, theirs, strict=True))
    assert measured(name, "forward", worst) <= TOLERANCE


@pytest.mark.parametrize("name", ["dinov2-encoder"])
def test_an_encoder_without_a_head(name, reference, measured):
    """The test compares the states of all tokens and of the class token, and the gradients of the
    mean of the states' squares."""
    ref = reference(name)
    batch = {"image": jnp.asarray(ref.arrays["image"])}

    def loss(tree):
        out = ref.model.apply(tree, batch).value
        return jnp.mean(jnp.square(out["hidden"])), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(ref.tree)
    worst = max(distance(out[key], ref.arrays[key]) for key in ("hidden", "pooled"))
    assert measured("dinov2", "forward", worst) <= TOLERANCE
    errors = relative_errors(params.paths(gradients), params.paths(ref.gradients))
    worst = max(errors, key=errors.get)
    assert measured("dinov2", "backward", errors[worst]) <= TOLERANCE, worst


@pytest.mark.parametrize("name", RESNETS)
def test_states_between_stages(name, reference, measured):
    ref = reference(name)
    trainable, frozen = params.partition(ref.tree, ref.model.spec)
    stages = ["stem", *(f"stage{n}" for n in range(len(ref.cfg.depths)))]
    _, state = ResNet(ref.cfg).apply(
        {"params": trainable, "batch_stats": frozen},
        batch_of(ref)["image"],
        train=False,
        capture_intermediates=lambda module, _: module.name in stages,
    )
    ours = [state["intermediates"][name]["__call__"][0] for name in stages]
    theirs = [ref.arrays[f"hidden_states/{n}"] for n in range(len(stages))]
    worst = max(distance(a, b) for a, b in zip(ours, theirs, strict=True))
    assert measured(name, "forward", worst) <= TOLERANCE


@pytest.mark.few("resnet")
@pytest.mark.parametrize("name", [*RESNETS, "vgg_bn"])
def test_running_statistics_after_a_training_step(name, reference, measured):
    """torch keeps the unbiased variance and Flax the biased one. The test removes the factor n / (n
    - 1), for n values a channel."""
    ref = reference(name)
    _, updates = jax.jit(functools.partial(mean_loss, ref.model))(ref.tree, batch_of(ref))
    before, worst = params.paths(ref.tree), 0.0
    pieces = list(names.pieces(ref.family.rows, params.paths(ref.model.spec), ref.cfg))
    theirs = {p.row.ours: ref.arrays[f"running/{p.name}"] for p in pieces if "running" in p.name}
    assert set(theirs) == set(updates)
    sizes = value_counts(ref)
    for path, ours in updates.items():
        if path.endswith("var"):
            n = sizes[path.removesuffix("/var")]
            ours = 0.9 * before[path] + (ours - 0.9 * before[path]) * n / (n - 1)
        worst = max(worst, distance(ours, theirs[path]))
    assert measured(name, "forward", worst) <= TOLERANCE


def value_counts(ref) -> dict[str, int]:
    """How many values of one channel each batch norm reads in the batch of the reference."""
    trainable, frozen = params.partition(ref.tree, ref.model.spec)
    module = Network if hasattr(ref.cfg, "batch_norm") else ResNet
    _, state = module(ref.cfg).apply(
        {"params": trainable, "batch_stats": frozen},
        batch_of(ref)["image"],
        train=False,
        capture_intermediates=lambda module, _: str(module.name).startswith("norm"),
    )
    states = params.paths(state["intermediates"])
    return {path.removesuffix("/__call__"): x[0][..., 0].size for path, x in states.items()}


# In training, batch norm subtracts a batch's mean, and so removes the bias of the convolution
# before it. Only 1x1 convolutions lie between a block's last bias and the next batch norm, which
# removes that bias too. So these gradients are zero, and both sides hold rounding errors.
# `test_gradients_with_running_statistics` compares them.
CANCELLED = {"efficientnet": r"project/norm/bias", "vgg_bn": r"conv\d+/bias"}


@pytest.mark.few("vit", "dinov2_registers", "resnet", "efficientnet")
@every_family
def test_gradients_of_every_parameter(name, reference, measured):
    """Errors are relative to the norm of the parameter's gradient. The model is in training, so
    batch norm reads the batch."""
    ref = reference(name)
    trainable, frozen = params.partition(ref.tree, ref.model.spec)

    def loss(tree, batch):
        return mean_loss(ref.model, params.merge(tree, frozen), batch)[0]

    value, ours = jax.jit(jax.value_and_grad(loss))(trainable, batch_of(ref))
    assert abs(float(value) - float(ref.arrays["loss"])) <= TOLERANCE
    ours, theirs = params.paths(ours), params.paths(ref.gradients)
    cancelled = [path for path in ours if name in CANCELLED and re.search(f"{CANCELLED[name]}$", path)]
    for path in cancelled:
        assert np.linalg.norm(ours[path]) < 1e-6 > np.linalg.norm(theirs[path]), path
    errors = relative_errors({p: g for p, g in ours.items() if p not in cancelled}, theirs)
    worst = max(errors, key=errors.get)
    assert measured(name, "backward", errors[worst]) <= TOLERANCE, worst


def relative_errors(ours, theirs) -> dict[str, float]:
    # A key bias adds the same to all logits of a query: its gradient is zero, and noise has no
    # scale.
    return {path: distance(g, theirs[path]) / max(np.linalg.norm(theirs[path]), 1e-3) for path, g in ours.items()}


@pytest.mark.parametrize("name", ["efficientnet", "vgg_bn"])
def test_gradients_with_running_statistics(name, reference, measured):
    """The model runs as in evaluation, so every parameter has a gradient."""
    ref = reference(name)
    trainable, frozen = params.partition(ref.tree, ref.model.spec)

    def loss(tree, batch):
        logits = ref.model.apply(params.merge(tree, frozen), batch).value
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))

    value, ours = jax.jit(jax.value_and_grad(loss))(trainable, batch_of(ref))
    assert abs(float(value) - float(ref.arrays["loss_eval"])) <= TOLERANCE
    source = dict(folder.open_file(ref.folder / "gradients_eval.safetensors"))
    theirs = params.paths(read(ref.family, ref.cfg, source))
    assert all(np.linalg.norm(theirs[path]) > 1e-3 for path in params.paths(ours))
    errors = relative_errors(params.paths(ours), theirs)
    worst = max(errors, key=errors.get)
    assert measured(name, "backward", errors[worst]) <= TOLERANCE, worst


@pytest.mark.exhaustive  # their gradients are compared above, and AdamW by the decoders' curves
@pytest.mark.parametrize("name", TRAINED)
def test_training_curve(name, reference, measured):
    """Both sides take 20 steps of AdamW from the same weights on the same batches."""
    ref = reference(name)
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

    state, losses = jax.jit(tx.init)(trainable), []
    batches = batch_of(ref, "train/")
    for n in range(STEPS):
        batch = {k: v[n % len(v)] for k, v in batches.items()}
        trainable, state, value = step(trainable, state, batch)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.1, "it learns nothing"
    assert measured(name, "training", distance(losses, ref.arrays["train/losses"])) <= 1e-3


@every_family
def test_export_gives_the_same_bits(name, reference, measured, tmp_path):
    """An import followed by an export gives every tensor of the file bit for bit, and the same
    config."""
    ref = reference(name)
    flat = {path: np.asarray(x) for path, x in params.paths(ref.tree).items()}
    folder.save_params(ref.family, ref.cfg, flat, tmp_path)
    theirs, ours = folder.open_weights(ref.folder), folder.open_weights(tmp_path)
    unread = ("num_batches_tracked", "mask_token")  # a counter, and what stands for hidden patches
    theirs = {n: t for n, t in theirs.items() if not n.endswith(unread)}
    assert set(ours) == set(theirs)
    differing = [n for n in theirs if ours[n].read().tobytes() != theirs[n].read().tobytes()]
    assert measured(name, "export", len(differing)) == 0, differing
    assert folder.read_config(tmp_path) == (ref.family, ref.cfg)
