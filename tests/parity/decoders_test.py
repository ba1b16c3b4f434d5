"""Decoders against transformers: same weights, same logits, hidden states, gradients, training
curves and decoding.

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
FAMILIES = [
    "gpt2",
    "llama",
    "llama31",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "olmo2",
    "olmo3",
    "granite",
    "glm4",
    "phi3",
    "phi4_mini",
    "gemma",
    "gemma2",
    "gemma3",
    "mixtral",
    "qwen3_moe",
    "qwen3_next",
    "gpt_oss",
    "deepseek",
    "moonlight",
]
TRAINED = ["gpt2", "llama", "phi3", "mixtral", "qwen3_moe", "qwen3_next", "gpt_oss"]

every_family = pytest.mark.parametrize("name", FAMILIES)


def logits(ref, tokens, **batch):
    batch = {name: jnp.asarray(x, jnp.int32) for name, x in {"tokens": tokens, **batch}.items()}
    return jax.jit(ref.model.apply)(ref.tree, batch).value


# Families whose packed documents the quick suite does not compare, and one of those that it does.
@pytest.mark.few("llama", "llama31", "qwen2", "gemma", "qwen3_moe", "qwen3_next", "moonlight", "gpt2")
@every_family
def test_logits(name, reference, measured):
    ref = reference(name)
    ours, theirs = logits(ref, ref.arrays["tokens"]), ref.arrays["logits"]
    assert 0.3 < theirs.std() < 30, "logits of a scale at which 1e-4 says something"
    assert measured(name, "forward", distance(ours, theirs)) <= TOLERANCE


@every_family
# Padding is masked as other documents are, which the quick suite compares for every decoder.
@pytest.mark.few("left-gemma3", "left-deepseek", "right-llama")
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_with_padding(name, side, reference, measured):
    ref = reference(name)
    mask = ref.arrays[f"padded_{side}/mask"]
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    ours = logits(ref, ref.arrays["padded/tokens"], positions=positions, segment_ids=mask)
    theirs = ref.arrays[f"padded_{side}/logits"]
    assert measured(name, "forward", distance(ours[mask > 0], theirs[mask > 0])) <= TOLERANCE


@every_family
def test_logits_of_packed_documents(name, reference, measured):
    ref = reference(name)
    documents = [ref.arrays[f"packed/tokens_{n}"] for n in (0, 1)]
    lengths = [d.shape[1] for d in documents]
    ours = logits(
        ref,
        np.concatenate(documents, axis=1),
        positions=np.concatenate([np.arange(n) for n in lengths])[None],
        segment_ids=np.repeat([1, 2], lengths)[None],
    )
    theirs = np.concatenate([ref.arrays[f"packed/logits_{n}"] for n in (0, 1)], axis=1)
    assert measured(name, "forward", distance(ours, theirs)) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.few("llama", "gemma3")  # the logits and gradients of the others pass through all layers
@every_family
def test_hidden_states(name, reference, measured, monkeypatch):
    """The test compares the input of each layer. The reference's last hidden state is normed, and
    the logits check it."""
    ref = reference(name)
    stacks = record_layers(monkeypatch)
    ref.model.apply(ref.tree, {"tokens": jnp.asarray(ref.arrays["tokens"], jnp.int32)})
    states = [x for states in stacks for x in states[:-1]]
    theirs = ref.arrays["hidden_states"][: -1 : ref.cfg.BLOCK_LAYERS]
    assert len(states) == len(theirs)
    worst = max(distance(a, b) for a, b in zip(states, theirs, strict=True))
    assert measured(name, "forward", worst) <= TOLERANCE


def language_model_batch(tokens):
    tokens = jnp.asarray(tokens, jnp.int32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": jnp.ones(tokens[:, 1:].shape)}


def mean_loss(model, tree, tokens, batch_of=language_model_batch):
    loss = NextToken().loss(model, tree, batch_of(tokens), rng=None, train=True)
    return loss.mean.total / loss.mean.count


def packed(tokens):
    """The same tokens and targets as documents of one row."""
    rows, length = tokens[:, 1:].shape
    places = {"positions": np.tile(np.arange(length), rows), "segment_ids": np.repeat(np.arange(rows) + 1, length)}
    batch = {key: x.reshape(1, -1) for key, x in language_model_batch(tokens).items()}
    return batch | {key: jnp.asarray(x, jnp.int32)[None] for key, x in places.items()}


def gradient_error(ref, batch_of) -> tuple[str, float]:
    """The parameter whose gradient differs most, relative to its norm, and that difference."""
    trainable, frozen = params.partition(ref.tree, ref.model.spec)

    def loss(tree):
        return mean_loss(ref.model, params.merge(tree, frozen), ref.arrays["tokens"], batch_of)

    value, ours = jax.jit(jax.value_and_grad(loss))(trainable)
    assert abs(float(value) - float(ref.arrays["loss"])) <= TOLERANCE
    theirs = params.paths(ref.gradients)
    errors = {}
    for path, gradient in params.paths(ours).items():
        scale = np.linalg.norm(theirs[path])
        # A key bias adds the same to all logits of a query: its gradient is zero, and noise has no
        # scale.
        errors[path] = distance(gradient, theirs[path]) / max(scale, 1e-3)
    worst = max(errors, key=errors.get)
    return worst, errors[worst]


@pytest.mark.slow
@every_family
def test_gradients_of_every_parameter(name, reference, measured):
    worst, error = gradient_error(reference(name), language_model_batch)
    assert measured(name, "backward", error) <= TOLERANCE, worst


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_next"])
def test_gradients_of_packed_documents(name, reference, measured):
    """States pass from token to token, but not from one document of a row to the next."""
    worst, error = gradient_error(reference(name), packed)
    assert measured(name, "backward", error) <= TOLERANCE, worst


@pytest.mark.slow
@pytest.mark.few("llama")
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
    def step(tree, state, tokens):
        def loss(tree):
            return mean_loss(ref.model, params.merge(tree, frozen), tokens)

        value, gradient = jax.value_and_grad(loss)(tree)
        updates, state = tx.update(gradient, state, tree)
        return optax.apply_updates(tree, updates), state, value

    state, losses = jax.jit(tx.init)(trainable), []
    for tokens in ref.arrays["train/tokens"]:
        trainable, state, value = step(trainable, state, tokens)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.1, "it learns nothing"
    assert measured(name, "training", distance(losses, ref.arrays["train/losses"])) <= 1e-3


@pytest.mark.slow
@pytest.mark.few("llama", "deepseek")  # the next test decodes with every family's cache
@every_family
def test_greedy_generation(name, reference, measured, monkeypatch):
    """The layers are separate, as large models have them on a CPU; the next test decodes from
    stacks."""
    monkeypatch.setattr("bigmodel_jax.inference.compiled.APART_FROM", 0)
    ref = reference(name)
    theirs = ref.arrays["greedy/tokens"]
    sample = SampleConfig(max_tokens=theirs.shape[1], temperature=0.0)
    ours = generation.generate(ref.model, ref.tree, ref.arrays["greedy/prompt"].tolist(), sample, stop=())
    assert measured(name, "decode", int(np.sum(np.asarray(ours) != theirs))) == 0


@pytest.mark.slow
@every_family
def test_decoding_equals_the_full_forward(name, reference, measured):
    ref = reference(name)
    tokens = jnp.asarray(ref.arrays["tokens"], jnp.int32)
    step = jax.jit(ref.model.apply)
    cache, pieces = params.empty(ref.model.make_cache(*tokens.shape, jnp.float32)), []
    for start, stop in [(0, 4), *((i, i + 1) for i in range(4, tokens.shape[1]))]:
        positions = jnp.broadcast_to(jnp.arange(start, stop), (tokens.shape[0], stop - start))
        out = step(ref.tree, {"tokens": tokens[:, start:stop], "positions": positions}, cache=cache)
        pieces.append(out.value)
        cache = out.cache
    error = distance(jnp.concatenate(pieces, axis=1), ref.arrays["logits"])
    assert measured(name, "decode", error) <= TOLERANCE


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
