"""Whisper against transformers: same weights, same logits, hidden states, gradients, training,
decoding and spectrograms.

Tolerance 1e-4 absolute; the logits have a standard deviation of about 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.data.audio import windows
from bigmodel_jax.models import whisper
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.pretrained import folder
from reference import HERE, distance, record_layers

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def ref(reference):
    return reference("whisper")


def pair(ref, prefix=""):
    tokens = jnp.asarray(ref.arrays[f"{prefix}tokens"], jnp.int32)
    return {"log_mel": jnp.asarray(ref.arrays[f"{prefix}log_mel"]), "tokens": tokens}


def test_logits(ref, measured):
    ours, theirs = jax.jit(ref.model.apply)(ref.tree, pair(ref)).value, ref.arrays["logits"]
    assert 0.3 < theirs.std() < 30, "logits of a scale at which 1e-4 says something"
    assert measured("whisper", "forward", distance(ours, theirs)) <= TOLERANCE


@pytest.mark.exhaustive  # the logits and the gradients of every parameter pass through all layers
def test_hidden_states(ref, measured, monkeypatch):
    """The test compares the input of each layer of both stacks. The logits check the last hidden
    states."""
    stacks = record_layers(monkeypatch)
    ref.model.apply(ref.tree, pair(ref))
    for states, side in zip(stacks, ("encoder", "decoder"), strict=True):
        theirs = ref.arrays[f"{side}_hidden_states"][:-1]
        worst = max(distance(a, b) for a, b in zip(states[:-1], theirs, strict=True))
        assert measured("whisper", "forward", worst) <= TOLERANCE, side


def mean_loss(model, tree, batch):
    tokens = batch["tokens"]
    targets = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": jnp.ones(tokens[:, 1:].shape)}
    loss = NextToken().loss(model, tree, batch | targets, rng=None, train=True)
    return loss.mean.total / loss.mean.count


@pytest.mark.slow
def test_gradients_of_every_parameter(ref, measured):
    value, ours = jax.jit(jax.value_and_grad(lambda tree: mean_loss(ref.model, tree, pair(ref))))(ref.tree)
    assert abs(float(value) - float(ref.arrays["loss"])) <= TOLERANCE
    ours, theirs = params.paths(ours), params.paths(ref.gradients)
    errors = {path: distance(g, theirs[path]) / max(np.linalg.norm(theirs[path]), 1e-3) for path, g in ours.items()}
    worst = max(errors, key=errors.get)
    assert measured("whisper", "backward", errors[worst]) <= TOLERANCE, worst


@pytest.mark.exhaustive  # its gradients are compared above, and AdamW by the decoders' curves
def test_training_curve(ref, measured):
    """Both sides take 20 steps of AdamW from the same weights on the same batch."""
    # Theirs is a matrix to AdamW; a bias of heads is none.
    mask = params.map_spec(lambda p: p.decay, ref.model.spec)
    rule = optax.adamw(3e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=mask)
    tx, batch = optax.chain(optax.clip_by_global_norm(1.0), rule), pair(ref, "train/")

    @jax.jit
    def step(tree, state):
        value, gradient = jax.value_and_grad(lambda tree: mean_loss(ref.model, tree, batch))(tree)
        updates, state = tx.update(gradient, state, tree)
        return optax.apply_updates(tree, updates), state, value

    tree, state, losses = ref.tree, tx.init(ref.tree), []
    for _ in range(len(ref.arrays["train/losses"])):
        tree, state, value = step(tree, state)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.1, "it learns nothing"
    assert measured("whisper", "training", distance(losses, ref.arrays["train/losses"])) <= 1e-3


@pytest.mark.slow
def test_greedy_decoding_with_a_cache(ref, measured):
    """The first call encodes and reads the start. Later calls have neither spectrogram nor the
    encoder's output."""
    start, theirs = ref.arrays["greedy/start"], ref.arrays["greedy/tokens"]
    batch = {"log_mel": ref.arrays["greedy/log_mel"], "tokens": jnp.asarray(start, jnp.int32)}
    apply = jax.jit(lambda batch, cache: ref.model.apply(ref.tree, batch, cache=cache))
    out, made, ones = (
        apply(batch, params.empty(ref.model.make_cache(2, 16, jnp.float32))),
        [],
        jnp.ones((2, 1), jnp.int32),
    )
    for i in range(theirs.shape[1]):
        made.append(out.value[:, -1].argmax(-1))
        tokens = made[-1][:, None].astype(jnp.int32)
        step = {"tokens": tokens, "positions": (start.shape[1] + i) * ones, "segment_ids": ones}
        out = apply(step, out.cache)
    assert measured("whisper", "decode", int(np.sum(np.stack(made, 1) != theirs))) == 0


@pytest.mark.slow
def test_decoding_equals_the_full_forward(ref, measured):
    batch, ones = pair(ref), jnp.ones((2, 1), jnp.int32)
    full = ref.model.apply(ref.tree, batch).value
    apply = jax.jit(lambda batch, cache: ref.model.apply(ref.tree, batch, cache=cache))
    out = apply(batch | {"tokens": batch["tokens"][:, :3]}, params.empty(ref.model.make_cache(2, 9, jnp.float32)))
    pieces = [out.value]
    for i in range(3, batch["tokens"].shape[1]):
        step = {"tokens": batch["tokens"][:, i : i + 1], "positions": i * ones, "segment_ids": ones}
        out = apply(step, out.cache)
        pieces.append(out.value)
    assert measured("whisper", "decode", distance(jnp.concatenate(pieces, axis=1), full)) <= TOLERANCE


def test_export_gives_the_same_bits(ref, measured, tmp_path):
    """An import followed by an export gives every tensor bit for bit, except for the positions,
    which both sides compute."""
    flat = {path: np.asarray(x) for path, x in params.paths(ref.tree).items()}
    folder.save_params(ref.family, ref.cfg, flat, tmp_path)
    theirs, ours = folder.open_weights(ref.folder), folder.open_weights(tmp_path)
    computed = "model.encoder.embed_positions.weight"
    np.testing.assert_allclose(whisper.sinusoids(ref.cfg), theirs.pop(computed).read(), atol=1e-6)
    ours.pop(computed, None)
    assert set(ours) == set(theirs)
    differing = [n for n in theirs if ours[n].read().tobytes() != theirs[n].read().tobytes()]
    assert measured("whisper", "export", len(differing)) == 0, differing
    assert folder.read_config(tmp_path) == (ref.family, ref.cfg)


@pytest.mark.parametrize("bins", [80, 128])
def test_spectrograms_are_those_of_whispers_features(bins):
    """The sounds are noise, a tone, and silence, each the first second of a window."""
    with np.load(HERE / "fixtures" / "whisper_features" / "reference.npz") as found:
        for n in range(3):
            ours = windows.log_mel(found[f"samples/{n}"], bins)
            assert ours.shape == (3000, bins)
            assert (
                distance(ours[:100], found[f"log_mel/{n}/{bins}"]) <= 1e-4
            )  # theirs is float32; a faint bin's logarithm shows it


COUNTS = {"tiny": 37_760_640, "base": 72_593_920, "small": 241_734_912, "medium": 763_857_920}
COUNTS |= {"large-v2": 1_543_304_960, "large-v3": 1_543_490_560, "large-v3-turbo": 808_878_080}


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name):
    """transformers counts the parameters of OpenAI's files, and includes the encoder's sines."""
    cfg = whisper.PRESETS[f"whisper-{name}"]
    assert params.count(cfg.make().spec) + cfg.max_audio_len * cfg.embed_dim == COUNTS[name]
