"""The conformer against transformers' Parakeet, CTC against torch, spectrograms against
transformers' features.

Tolerances: 1e-4 for the model, whose logits have a standard deviation of about 1; 1e-5 for the loss
and its gradient.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.data.audio import spectrogram
from bigmodel_jax.objectives import CTC
from bigmodel_jax.objectives.ctc import loss as ctc_loss
from bigmodel_jax.pretrained import folder, names
from reference import HERE, distance, record_layers

TOLERANCE = 1e-4
every_form = pytest.mark.parametrize("name", ["conformer", "conformer_bare"])


def batch_of(ref, prefix=""):
    fields = ("log_mel", "num_frames", "labels", "num_labels")
    batch = {name: jnp.asarray(ref.arrays[prefix + name]) for name in fields}
    return batch | {"weights": jnp.ones(len(batch["log_mel"]))}


def objective(ref):
    return CTC(blank=ref.cfg.vocab_size - 1)


def mean_loss(ref, tree, batch, train=False):
    found = objective(ref).loss(ref.model, tree, batch, rng=None, train=train)
    return found.mean.total / found.mean.count, found.updates


@every_form
def test_logits_of_rows_with_padding(name, reference, measured):
    ref = reference(name)
    out = jax.jit(ref.model.apply)(ref.tree, batch_of(ref)).value
    theirs = ref.arrays["logits"]
    assert 0.3 < theirs.std() < 30, "logits of a scale at which 1e-4 says something"
    lengths = np.asarray(out["num_frames"])
    assert len(set(lengths)) == 3
    assert lengths.max() == theirs.shape[1]
    pairs = zip(out["logits"], theirs, lengths, strict=True)
    assert measured(name, "forward", max(distance(a[:n], b[:n]) for a, b, n in pairs)) <= TOLERANCE


@pytest.mark.exhaustive  # the logits and the gradients of every parameter pass through all layers
def test_hidden_states(reference, measured, monkeypatch):
    """The test compares the input of each layer, and the output of the last."""
    ref = reference("conformer")
    stacks = record_layers(monkeypatch)
    out = ref.model.apply(ref.tree, batch_of(ref)).value
    (states,) = stacks
    theirs = [ref.arrays[f"hidden_states/{n}"] for n in range(len(states))]
    inside = np.arange(theirs[0].shape[1]) < np.asarray(out["num_frames"])[:, None]
    worst = max(distance(a[inside], b[inside]) for a, b in zip(states, theirs, strict=True))
    assert measured("conformer", "forward", worst) <= TOLERANCE


@pytest.mark.few("conformer")
@every_form
def test_gradients_of_every_parameter(name, reference, measured):
    """Errors are relative to the norm of the parameter's gradient. The model uses running
    statistics. The batch has rows with padding and one without labels."""
    ref = reference(name)
    trainable, frozen = params.partition(ref.tree, ref.model.spec)

    def of(tree, batch):
        return mean_loss(ref, params.merge(tree, frozen), batch)[0]

    value, ours = jax.jit(jax.value_and_grad(of))(trainable, batch_of(ref))
    assert abs(float(value) - float(ref.arrays["loss"])) <= TOLERANCE
    ours, theirs = params.paths(ours), params.paths(ref.gradients)
    # A key bias adds the same to all logits of a query: its gradient is zero, and noise has no
    # scale.
    errors = {path: distance(g, theirs[path]) / max(np.linalg.norm(theirs[path]), 1e-3) for path, g in ours.items()}
    worst = max(errors, key=errors.get)
    assert measured(name, "backward", errors[worst]) <= TOLERANCE, worst


@every_form
def test_running_statistics_after_a_training_step(name, reference, measured):
    ref = reference(name)
    value, updates = jax.jit(functools.partial(mean_loss, ref, train=True))(ref.tree, batch_of(ref, "train/"))
    assert abs(float(value) - float(ref.arrays["train/loss"])) <= TOLERANCE
    pieces = [p for p in names.pieces(ref.family.rows, params.paths(ref.model.spec), ref.cfg) if "running" in p.name]
    assert {p.row.ours for p in pieces} == set(updates)
    worst = max(distance(updates[p.row.ours][p.index], ref.arrays[f"running/{p.name}"]) for p in pieces)
    assert measured(name, "forward", worst) <= TOLERANCE


@pytest.mark.exhaustive  # its gradients and statistics are compared above, and AdamW by the decoders' curves
@pytest.mark.parametrize("name", ["conformer"])
def test_training_curve(name, reference, measured):
    """Both sides take 20 steps of AdamW from the same weights on the same batch, and batch norm
    moves along."""
    ref = reference(name)
    trainable, frozen = params.partition(ref.tree, ref.model.spec)
    mask = params.partition(params.map_spec(lambda p: p.decay, ref.model.spec), ref.model.spec)[0]
    rule = optax.adamw(3e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=mask)
    tx, batch = optax.chain(optax.clip_by_global_norm(1.0), rule), batch_of(ref, "train/")

    @jax.jit
    def step(tree, state):
        def of(tree):
            return mean_loss(ref, params.merge(tree, frozen), batch, train=True)[0]

        value, gradient = jax.value_and_grad(of)(tree)
        updates, state = tx.update(gradient, state, tree)
        return optax.apply_updates(tree, updates), state, value

    state, losses = tx.init(trainable), []
    for _ in range(len(ref.arrays["train/losses"])):
        trainable, state, value = step(trainable, state)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.1, "it learns nothing"
    assert measured(name, "training", distance(losses, ref.arrays["train/losses"])) <= 1e-3


@every_form
def test_export_gives_the_same_bits(name, reference, measured, tmp_path):
    """An import followed by an export gives every tensor of the file bit for bit, and the same
    config."""
    ref = reference(name)
    flat = {path: np.asarray(x) for path, x in params.paths(ref.tree).items()}
    folder.save_params(ref.family, ref.cfg, flat, tmp_path)
    theirs, ours = folder.open_weights(ref.folder), folder.open_weights(tmp_path)
    theirs = {n: t for n, t in theirs.items() if not n.endswith("num_batches_tracked")}  # a counter nothing reads
    assert set(ours) == set(theirs)
    differing = [n for n in theirs if ours[n].read().tobytes() != theirs[n].read().tobytes()]
    assert measured(name, "export", len(differing)) == 0, differing
    assert folder.read_config(tmp_path) == (ref.family, ref.cfg)


def test_the_loss_and_its_gradient_are_torchs():
    """The batch has repeated labels, a row without labels, and rows with no frame to spare."""
    with np.load(HERE / "fixtures" / "ctc" / "reference.npz") as arrays:
        ref = dict(arrays)

    def of(logits):
        nats = ctc_loss(logits, ref["num_frames"], ref["labels"], ref["num_labels"], blank=0)
        return nats.sum(), nats

    gradient, nats = jax.jit(jax.grad(of, has_aux=True))(ref["logits"])
    assert distance(nats, ref["nats"]) <= 1e-5
    assert distance(gradient, ref["gradient"]) <= 1e-5


@pytest.mark.parametrize("n", range(3), ids=["noise", "tone", "silence"])
def test_spectrograms_are_those_of_parakeets_features(n):
    """For silence, the reference has magnified rounding errors, and this package has zeros."""
    with np.load(HERE / "fixtures" / "speech_features" / "reference.npz") as ref:
        ours, theirs = spectrogram.log_mel(ref[f"samples/{n}"], 40), ref[f"log_mel/{n}"]
    assert ours.shape == theirs.shape == (len(ours), 40)
    assert distance(ours, theirs) <= 1e-3 if n < 2 else not ours.any()
