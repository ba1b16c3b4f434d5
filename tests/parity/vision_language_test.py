"""LLaVA, PaliGemma, Idefics3 and SmolVLM against transformers: same weights, images and texts; same
logits, states, gradients.

Tolerance 1e-4 absolute; the logits of these models have a standard deviation of about 1.
"""

import dataclasses

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
ANSWER = 6  # tokens of a row's answer

every_family = pytest.mark.parametrize("name", ["llava", "paligemma", "idefics3", "smolvlm"])


def batch_of(ref) -> dict:
    """Image and text; prefix is 1 in front of the answer."""
    tokens = jnp.asarray(ref.arrays["tokens"], jnp.int32)
    before = jnp.arange(tokens.shape[1]) < int(ref.arrays["prompt"])
    return {
        "image": jnp.asarray(ref.arrays["image"]),
        "tokens": tokens,
        "prefix": jnp.broadcast_to(before, tokens.shape).astype(jnp.int32),
    }


def training_batch(ref) -> dict:
    batch = batch_of(ref)
    tokens, weights = batch["tokens"], jnp.zeros(batch["tokens"].shape).at[:, -ANSWER - 1 : -1].set(1)
    return batch | {"targets": jnp.roll(tokens, -1, axis=1), "weights": weights}


def mean_loss(ref, tree):
    loss = NextToken().loss(ref.model, tree, training_batch(ref), rng=None, train=True)
    return loss.mean.total / loss.mean.count


@every_family
def test_logits(name, reference, measured):
    ref = reference(name)
    ours = jax.jit(ref.model.apply)(ref.tree, batch_of(ref)).value
    assert 0.3 < ref.arrays["logits"].std() < 30, "logits of a scale at which 1e-4 says something"
    assert measured(name, "forward", distance(ours, ref.arrays["logits"])) <= TOLERANCE


@every_family
def test_logits_with_padding(name, reference, measured):
    """The second row begins with two tokens of padding."""
    ref = reference(name)
    mask = ref.arrays["padded/mask"]
    read = {"tokens": "tokens", "positions": "positions", "segment_ids": "mask"}
    batch = batch_of(ref) | {ours: jnp.asarray(ref.arrays[f"padded/{n}"], jnp.int32) for ours, n in read.items()}
    batch["prefix"] = batch["prefix"].at[1].set(jnp.roll(batch["prefix"][1], 2).at[:2].set(1))
    ours = jax.jit(ref.model.apply)(ref.tree, batch).value
    worst = distance(ours[mask > 0], ref.arrays["padded/logits"][mask > 0])
    assert measured(name, "forward", worst) <= TOLERANCE


@every_family
def test_the_image_is_read(name, reference):
    """Another image changes the answer's logits. A change of another row's image does not."""
    ref = reference(name)
    batch = batch_of(ref)
    other = batch | {"image": batch["image"].at[0].add(0.5)}
    before, after = (jax.jit(ref.model.apply)(ref.tree, b).value for b in (batch, other))
    assert distance(before[0, -1], after[0, -1]) > 1e-2
    assert distance(before[1], after[1]) == 0


@pytest.mark.few("llava")
@every_family
def test_hidden_states(name, reference, measured, monkeypatch):
    """The test compares the input of each of the decoder's layers, which holds the image's
    states."""
    ref = reference(name)
    stacks = record_layers(monkeypatch)
    ref.model.apply(ref.tree, batch_of(ref))
    states, theirs = stacks[-1][:-1], ref.arrays["hidden_states"][:-1]
    assert len(states) == len(theirs)
    worst = max(distance(a, b) for a, b in zip(states, theirs, strict=True))
    assert measured(name, "forward", worst) <= TOLERANCE


@every_family
def test_gradients_of_every_parameter(name, reference, measured):
    """Errors are relative to the norm of the parameter's gradient. A parameter that nothing reads
    has no gradient in the reference either."""
    ref = reference(name)
    trainable, frozen = params.partition(ref.tree, ref.model.spec)
    value, ours = jax.jit(jax.value_and_grad(lambda t: mean_loss(ref, params.merge(t, frozen))))(trainable)
    assert measured(name, "forward", abs(float(value) - float(ref.arrays["loss"]))) <= TOLERANCE
    theirs, errors = params.paths(ref.gradients), {}
    for path, gradient in params.paths(ours).items():
        # A key bias adds the same to all logits of a query: its gradient is zero, and noise has no
        # scale.
        errors[path] = distance(gradient, theirs[path]) / max(np.linalg.norm(theirs[path]), 1e-3)
    worst = max(errors, key=errors.get)
    assert measured(name, "backward", errors[worst]) <= TOLERANCE, worst
    assert not any(np.any(theirs[path]) for path in params.paths(frozen))


@pytest.mark.exhaustive  # its gradients are compared above, and AdamW by the decoders' curves
def test_training_curve(reference, measured):
    """Both sides take 20 steps of AdamW from the same weights on the same batch."""
    ref = reference("llava")
    trainable, frozen = params.partition(ref.tree, ref.model.spec)
    # The reference decays its matrices, of which biases of heads are none.
    matrices = params.map_spec(lambda p: len(p.shape) - ("layers" in p.axes) >= 2, ref.model.spec)
    flat = params.paths(params.partition(matrices, ref.model.spec)[0])
    flat = {path: keep and not path.endswith("_bias") for path, keep in flat.items()}
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(3e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=params.from_paths(flat)),
    )

    @jax.jit
    def step(tree, state):
        value, gradient = jax.value_and_grad(lambda t: mean_loss(ref, params.merge(t, frozen)))(tree)
        updates, state = tx.update(gradient, state, tree)
        return optax.apply_updates(tree, updates), state, value

    state, losses = tx.init(trainable), []
    for _ in ref.arrays["train/losses"]:
        trainable, state, value = step(trainable, state)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.1, "it learns nothing"
    assert measured("llava", "training", distance(losses, ref.arrays["train/losses"])) <= 1e-3


@pytest.mark.few("llava")
@every_family
def test_greedy_generation(name, reference, measured):
    ref = reference(name)
    theirs, prompt = ref.arrays["greedy/tokens"], int(ref.arrays["prompt"])
    sample = SampleConfig(max_tokens=theirs.shape[1], temperature=0.0)
    rows = ref.arrays["tokens"][:, :prompt].tolist()
    inputs = [{"image": ref.arrays["image"][n : n + 1]} for n in range(len(rows))]
    ours = generation.generate(ref.model, ref.tree, rows, sample, stop=(), inputs=inputs)
    assert measured(name, "decode", int(np.sum(np.asarray(ours) != theirs))) == 0


@pytest.mark.few("llava")  # behind the image, the decoders are those of decoders_test.py
@every_family
def test_decoding_equals_the_full_forward(name, reference, measured):
    """One call reads the prompt with its image. Then each call reads one token and no image."""
    ref = reference(name)
    batch, prompt = batch_of(ref), int(ref.arrays["prompt"])
    rows, length = batch["tokens"].shape
    step = jax.jit(ref.model.apply)
    cache, pieces = params.empty(ref.model.make_cache(rows, length, jnp.float32)), []
    for start, stop in [(0, prompt), *((i, i + 1) for i in range(prompt, length))]:
        piece = {"tokens": batch["tokens"][:, start:stop]}
        piece["positions"] = jnp.broadcast_to(jnp.arange(start, stop), piece["tokens"].shape)
        out = step(ref.tree, piece | ({"image": batch["image"]} if start == 0 else {}), cache=cache)
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


@pytest.mark.slow
def test_a_prefix_needs_data_that_marks_it(reference):
    ref = reference("paligemma")
    batch = {name: x for name, x in batch_of(ref).items() if name != "prefix"}
    with pytest.raises(ValueError, match=r"^batch has image, tokens, but no prefix: model.prefix_mask needs data"):
        ref.model.apply(ref.tree, batch)


@pytest.mark.slow
def test_the_prompt_is_read_in_both_directions(reference):
    """The logits at the image's first place have a gradient at the prompt's last token only with
    this mask."""
    ref = reference("paligemma")
    batch, last = batch_of(ref), int(ref.arrays["prompt"]) - 1
    changed = batch | {"tokens": batch["tokens"].at[:, last].add(1)}
    for cfg, moves in ((ref.cfg, True), (dataclasses.replace(ref.cfg, prefix_mask=False), False)):
        before, after = (jax.jit(cfg.make().apply)(ref.tree, b).value[:, 2] for b in (batch, changed))
        assert (distance(before, after) > 1e-3) == moves
