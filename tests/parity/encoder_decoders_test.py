"""Encoder-decoders against transformers: same weights, same logits, hidden states, gradients,
training and decoding.

Tolerance 1e-4 absolute; the logits of these models have a standard deviation of about 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import params
from bigmodel_jax.inference import generate as generation
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.pretrained import folder
from reference import distance, record_layers

TOLERANCE = 1e-4
FAMILIES = ["t5", "t5_v11", "transformer", "opus_mt", "bart"]
TRAINED = ["t5", "t5_v11", "bart"]
LEFT_PADDED = ["t5", "t5_v11"]  # the others' reference counts positions from the row's first column, padding or not

every_family = pytest.mark.parametrize("name", FAMILIES)


def logits(ref, **batch):
    return jax.jit(ref.model.apply)(ref.tree, {k: jnp.asarray(x, jnp.int32) for k, x in batch.items()}).value


def pair(ref):
    return {name: jnp.asarray(ref.arrays[name], jnp.int32) for name in ("encoder_tokens", "tokens")}


# The quick suite compares packed pairs of all others.
@pytest.mark.few("t5", "t5_v11")
@every_family
def test_logits(name, reference, measured):
    ref = reference(name)
    ours, theirs = logits(ref, **pair(ref)), ref.arrays["logits"]
    assert 0.3 < theirs.std() < 30, "logits of a scale at which 1e-4 says something"
    assert measured(name, "forward", distance(ours, theirs)) <= TOLERANCE


@pytest.mark.parametrize(("name", "side"), [(n, "right") for n in FAMILIES] + [(n, "left") for n in LEFT_PADDED])
def test_logits_where_the_encoder_is_padded(name, side, reference, measured):
    ref = reference(name)
    mask = ref.arrays[f"padded_{side}/mask"]
    ours = logits(ref, **pair(ref), encoder_segment_ids=mask)
    assert measured(name, "forward", distance(ours, ref.arrays[f"padded_{side}/logits"])) <= TOLERANCE


@every_family
def test_logits_of_packed_pairs(name, reference, measured):
    """One row holds two pairs, and both the encoder's and the decoder's part end with padding."""
    ref = reference(name)
    batch, lengths = {}, {}
    for key, segments in (("encoder_tokens", "encoder_segment_ids"), ("tokens", "segment_ids")):
        parts = [ref.arrays[f"packed/{key}_{n}"] for n in (0, 1)] + [np.zeros((1, 3), int)]
        lengths[key] = [p.shape[1] for p in parts]
        batch |= {key: np.concatenate(parts, axis=1), segments: np.repeat([1, 2, 0], lengths[key])[None]}
    batch["positions"] = np.concatenate([np.arange(n) for n in lengths["tokens"]])[None]
    theirs = np.concatenate([ref.arrays[f"packed/logits_{n}"] for n in (0, 1)], axis=1)
    assert measured(name, "forward", distance(logits(ref, **batch)[:, :-3], theirs)) <= TOLERANCE


@pytest.mark.few("t5")
@every_family
def test_hidden_states(name, reference, measured, monkeypatch):
    """The test compares the input of each layer of both stacks. The logits check the last hidden
    states."""
    ref = reference(name)
    stacks = record_layers(monkeypatch)
    ref.model.apply(ref.tree, pair(ref))
    for states, side in zip(stacks, ("encoder", "decoder"), strict=True):
        theirs = ref.arrays[f"{side}_hidden_states"][:-1]
        worst = max(distance(a, b) for a, b in zip(states[:-1], theirs, strict=True))
        assert measured(name, "forward", worst) <= TOLERANCE, side


def mean_loss(model, tree, encoder_tokens, tokens):
    tokens = jnp.asarray(tokens, jnp.int32)
    batch = {
        "encoder_tokens": jnp.asarray(encoder_tokens, jnp.int32),
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": jnp.ones(tokens[:, 1:].shape),
    }
    loss = NextToken().loss(model, tree, batch, rng=None, train=True)
    return loss.mean.total / loss.mean.count


@every_family
def test_gradients_of_every_parameter(name, reference, measured):
    """Errors are relative to the norm of the parameter's gradient."""
    ref = reference(name)
    trained, fixed = params.partition(ref.tree, ref.model.spec)

    def loss(tree):
        return mean_loss(ref.model, params.merge(tree, fixed), *pair(ref).values())

    value, ours = jax.jit(jax.value_and_grad(loss))(trained)
    assert abs(float(value) - float(ref.arrays["loss"])) <= TOLERANCE
    theirs = params.paths(ref.gradients)
    errors = {}
    for path, gradient in params.paths(ours).items():
        # A key bias adds the same to all logits of a query: its gradient is zero, and noise has no
        # scale.
        errors[path] = distance(gradient, theirs[path]) / max(np.linalg.norm(theirs[path]), 1e-3)
    worst = max(errors, key=errors.get)
    assert measured(name, "backward", errors[worst]) <= TOLERANCE, worst


@pytest.mark.exhaustive  # their gradients are compared above, and AdamW by the decoders' curves
@pytest.mark.parametrize("name", TRAINED)
def test_training_curve(name, reference, measured):
    """Both sides take 20 steps of AdamW from the same weights on the same batches."""
    ref = reference(name)
    trained, fixed = params.partition(ref.tree, ref.model.spec)
    mask = params.partition(params.map_spec(lambda p: p.decay, ref.model.spec), ref.model.spec)[0]
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(3e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=mask)
    )

    @jax.jit
    def step(tree, state, *batch):
        loss = jax.value_and_grad(lambda tree: mean_loss(ref.model, params.merge(tree, fixed), *batch))
        value, gradient = loss(tree)
        updates, state = tx.update(gradient, state, tree)
        return optax.apply_updates(tree, updates), state, value

    tree, state, losses = trained, jax.jit(tx.init)(trained), []
    for batch in zip(ref.arrays["train/encoder_tokens"], ref.arrays["train/tokens"], strict=True):
        tree, state, value = step(tree, state, *batch)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.1, "it learns nothing"
    assert measured(name, "training", distance(losses, ref.arrays["train/losses"])) <= 1e-3


@pytest.mark.few("bart")  # whose start is forced; the next test decodes with the others' caches
@every_family
def test_greedy_generation(name, reference, measured, monkeypatch):
    """A batch holds prompts of different lengths. The layers are separate, as large models have
    them on a CPU."""
    monkeypatch.setattr("bigmodel_jax.inference.compiled.APART_FROM", 0)
    ref = reference(name)
    theirs, mask = ref.arrays["greedy/tokens"], ref.arrays["greedy/mask"]
    if ref.model.forced_start is not None:  # which we do not return, since it is no part of the answer
        assert (theirs[:, 0] == ref.model.forced_start).all()
        theirs = theirs[:, 1:]
    prompts = [row[seen > 0].tolist() for row, seen in zip(ref.arrays["greedy/prompt"], mask, strict=True)]
    sample = SampleConfig(max_tokens=theirs.shape[1], temperature=0.0)
    ours = generation.generate(ref.model, ref.tree, prompts, sample, stop=())
    assert measured(name, "decode", int(np.sum(np.asarray(ours) != theirs))) == 0


@pytest.mark.few("t5", "transformer")  # greedy generation decodes with BART's cache
@every_family
def test_decoding_equals_the_full_forward(name, reference, measured):
    """The first call encodes and prefills. Later calls have neither the encoder's tokens nor its
    output."""
    ref = reference(name)
    batch = pair(ref)
    full = ref.model.apply(ref.tree, batch).value
    apply = jax.jit(lambda batch, cache: ref.model.apply(ref.tree, batch, cache=cache))
    segments = jnp.ones((2, 1), jnp.int32)
    first = {"encoder_tokens": batch["encoder_tokens"], "tokens": batch["tokens"][:, :3]}
    out = apply(first, params.empty(ref.model.make_cache(2, 9, jnp.float32)))
    pieces = [out.value]
    for i in range(3, batch["tokens"].shape[1]):
        step = {"tokens": batch["tokens"][:, i : i + 1], "positions": i * segments, "segment_ids": segments}
        out = apply(step, out.cache)
        pieces.append(out.value)
    assert measured(name, "decode", distance(jnp.concatenate(pieces, axis=1), full)) <= TOLERANCE


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
