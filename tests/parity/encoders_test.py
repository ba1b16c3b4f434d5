"""Encoders equal those of transformers with the same weights.

The tests compare the outputs of every head, hidden states, gradients and training curves.

Tolerance 1e-4 absolute; what these models give has a standard deviation of about 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.objectives import BertPretraining, Classification, MaskedLanguageModel, QuestionAnswering
from bigmodel_jax.pretrained import folder
from reference import distance, record_layers

TOLERANCE = 1e-4
HEADS = {
    "bert-encoder": "none",
    "bert-pretraining": "pretraining",
    "bert-classification": "classification",
    "bert-token-classification": "token_classification",
    "bert-question-answering": "question_answering",
    "roberta-encoder": "none",
    "roberta-classification": "classification",
    "distilbert-encoder": "none",
    "distilbert-classification": "classification",
    "distilbert-token-classification": "token_classification",
    "distilbert-question-answering": "question_answering",
    "electra-encoder": "none",
    "electra-replaced-token": "replaced_token",
    "electra-classification": "classification",
    "electra-token-classification": "token_classification",
    "electra-question-answering": "question_answering",
    "modernbert-encoder": "none",
    "modernbert-classification": "classification",
    "modernbert-mean-classification": "classification",
    "modernbert-token-classification": "token_classification",
    "modernbert-question-answering": "question_answering",
    "deberta-encoder": "none",
    "xlnet-encoder": "none",
}
ENCODERS = ["bert", "roberta", "distilbert", "electra", "modernbert", "deberta", "xlnet"]
PRE_NORM = {"modernbert"}  # the reference's last hidden state is what the last norm gives
TRAINED = ["bert", "electra", "modernbert"]

every_family = pytest.mark.parametrize("name", [*ENCODERS, *HEADS])
# A head adds nothing to these.
every_encoder = pytest.mark.parametrize("name", ENCODERS)


def family(name: str) -> str:
    """The line of the table that a head's figures belong to."""
    return name.split("-")[0]


def outputs(ref, tokens, **batch) -> dict:
    """What our model gives, by the names of transformers."""
    batch = {name: jnp.asarray(x, jnp.int32) for name, x in {"tokens": tokens, **batch}.items()}
    value = jax.jit(ref.model.apply)(ref.tree, batch).value
    names = {"hidden": "last_hidden_state", "pooled": "pooler_output", "next_sentence": "seq_relationship_logits"}
    if isinstance(value, dict):
        return {names.get(k, "prediction_logits"): np.asarray(v) for k, v in value.items()}
    if ref.cfg.head == "question_answering":
        return {"start_logits": np.asarray(value[..., 0]), "end_logits": np.asarray(value[..., 1])}
    if ref.cfg.head == "replaced_token":
        return {"logits": np.asarray(value[..., 1] - value[..., 0])}
    return {"logits": np.asarray(value)}


def theirs(ref, prefix: str = "") -> dict:
    prefix = f"{prefix}value/"
    return {k.removeprefix(prefix): v for k, v in ref.arrays.items() if k.startswith(prefix)}


def inputs(ref) -> dict:
    return {k: ref.arrays[k] for k in ("tokens", "token_types") if k in ref.arrays}


# Further heads of other families than BERT: one that is a class of a text.
@pytest.mark.few(
    *ENCODERS,
    *(name for name in HEADS if name.startswith(("bert-", "deberta-", "xlnet-"))),
    *(name for name in HEADS if name.endswith("-classification") and "token" not in name),
    "electra-replaced-token",
)
@every_family
def test_outputs(name, reference, measured):
    ref = reference(name)
    ours, expected = outputs(ref, **inputs(ref)), theirs(ref)
    assert set(ours) == set(expected)
    assert all(0.2 < x.std() < 30 for x in expected.values()), "outputs of a scale at which 1e-4 says something"
    worst = max(distance(ours[k], expected[k]) for k in expected)
    assert measured(family(name), "forward", worst) <= TOLERANCE


# Padding is masked as other documents are, which the quick suite compares for every encoder.
@pytest.mark.few("bert", "deberta", "modernbert", "xlnet")
@every_family
def test_outputs_with_padding(name, reference, measured):
    ref = reference(name)
    mask, expected = ref.arrays["padded/mask"], theirs(ref, "padded/")
    ours = outputs(ref, ref.arrays["padded/tokens"], segment_ids=mask)
    for key, x in expected.items():
        real = mask > 0 if x.shape[:2] == mask.shape else slice(None)
        assert measured(family(name), "forward", distance(ours[key][real], x[real])) <= TOLERANCE


@every_encoder
def test_outputs_of_packed_documents(name, reference, measured):
    ref = reference(name)
    documents = [ref.arrays[f"packed/tokens_{n}"] for n in (0, 1)]
    lengths = [d.shape[1] for d in documents]
    ours = outputs(
        ref,
        np.concatenate(documents, axis=1),
        positions=np.concatenate([np.arange(n) for n in lengths])[None],
        segment_ids=np.repeat([1, 2], lengths)[None],
    )
    for key, first in theirs(ref, "packed_0/").items():
        both = np.concatenate([first, theirs(ref, "packed_1/")[key]], axis=1)
        assert measured(family(name), "forward", distance(ours[key], both)) <= TOLERANCE


def test_outputs_in_an_order_of_prediction(reference, measured):
    """XLNet's query stream has seen the tokens before a token in its order, and not the token."""
    ref = reference("xlnet")
    order = {name: ref.arrays[name] for name in ("order", "places")}
    ours = outputs(ref, **inputs(ref), **order)["logits"]
    assert measured("xlnet", "forward", distance(ours, theirs(ref, "permuted/")["logits"])) <= TOLERANCE


@pytest.mark.few("bert", "deberta")
@every_encoder
def test_hidden_states(name, reference, measured, monkeypatch):
    """The test compares the input of each layer, and the output of the last."""
    ref = reference(name)
    stacks = record_layers(monkeypatch)
    ref.model.apply(ref.tree, {k: jnp.asarray(v, jnp.int32) for k, v in inputs(ref).items()})
    (states,) = stacks
    expected = ref.arrays["hidden_states"]
    assert len(states) == len(expected)
    last = -1 if name in PRE_NORM else None
    worst = max(distance(a, b) for a, b in zip(states[:last], expected[:last], strict=True))
    assert measured(family(name), "forward", worst) <= TOLERANCE


def loss_of(ref, tree, batch) -> jax.Array:
    """Mean loss of the head's objective; the encoder alone has the reference writer's."""
    batch = {k: jnp.asarray(v) for k, v in batch.items()}
    head = ref.cfg.head
    if head == "none":
        value = ref.model.apply(tree, batch).value
        return sum(jnp.mean(jnp.square(x)) for x in value.values())
    objectives = {
        "classification": Classification(),
        "question_answering": QuestionAnswering(),
        "pretraining": BertPretraining(),
    }
    if "weights" not in batch:
        batch["weights"] = jnp.ones(batch["tokens"].shape[0])
    loss = objectives.get(head, MaskedLanguageModel()).loss(ref.model, tree, batch, rng=None, train=True)
    return loss.mean.total / loss.mean.count


# Of further heads one: the others add a layer or none behind the same encoder.
@pytest.mark.few(*ENCODERS, "bert-pretraining")
@every_family
def test_gradients_of_every_parameter(name, reference, measured):
    """Errors are relative to the norm of the parameter's gradient."""
    ref = reference(name)
    names = ("targets", "weights", "next_sentence", "label", "start", "end", "order", "places")
    batch = inputs(ref) | {k: ref.arrays[k] for k in names if k in ref.arrays}
    value, ours = jax.jit(jax.value_and_grad(lambda tree: loss_of(ref, tree, batch)))(ref.tree)
    assert abs(float(value) - float(ref.arrays["loss"])) <= TOLERANCE
    expected, errors = params.paths(ref.gradients), {}
    for path, gradient in params.paths(ours).items():
        # A key bias adds the same to all logits of a query: its gradient is zero, and noise has no
        # scale.
        errors[path] = distance(gradient, expected[path]) / max(np.linalg.norm(expected[path]), 1e-3)
    worst = max(errors, key=errors.get)
    assert measured(family(name), "backward", errors[worst]) <= TOLERANCE, worst


@pytest.mark.exhaustive  # their gradients are compared above, and AdamW by the decoders' curves
@pytest.mark.parametrize("name", TRAINED)
def test_training_curve(name, reference, measured):
    """Both sides take 20 steps of AdamW on masked tokens from the same weights on the same
    batches."""
    ref = reference(name)
    mask = params.map_spec(lambda p: p.decay, ref.model.spec)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(3e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=mask)
    )

    @jax.jit
    def step(tree, state, batch):
        value, gradient = jax.value_and_grad(lambda tree: loss_of(ref, tree, batch))(tree)
        updates, state = tx.update(gradient, state, tree)
        return optax.apply_updates(tree, updates), state, value

    tree, state, losses = ref.tree, jax.jit(tx.init)(ref.tree), []
    for n in range(len(ref.arrays["train/losses"])):
        batch = {k: ref.arrays[f"train/{k}"][n] for k in ("tokens", "targets", "weights")}
        tree, state, value = step(tree, state, batch)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.1, "it learns nothing"
    assert measured(family(name), "training", distance(losses, ref.arrays["train/losses"])) <= 1e-3


@every_family
def test_export_gives_the_same_bits(name, reference, measured, tmp_path):
    """An import followed by an export gives every tensor of the file bit for bit, and the same
    config."""
    ref = reference(name)
    flat = {path: np.asarray(x) for path, x in params.paths(ref.tree).items()}
    folder.save_params(ref.family, ref.cfg, flat, tmp_path)
    expected, ours = folder.open_weights(ref.folder), folder.open_weights(tmp_path)
    assert set(ours) == set(expected)
    differing = [n for n in expected if ours[n].read().tobytes() != expected[n].read().tobytes()]
    assert measured(family(name), "export", len(differing)) == 0, differing
    assert folder.read_config(tmp_path) == (ref.family, ref.cfg)


@pytest.mark.parametrize("name", HEADS)
def test_an_architecture_is_a_head(name, reference):
    ref = reference(name)
    assert ref.cfg.head == HEADS[name]
    other = next(head for head in HEADS.values() if head != ref.cfg.head)
    with pytest.raises(ValueError, match=r"model\.head"):
        ref.family.to_hf(dataclasses.replace(ref.cfg, head=other))


def test_names_of_files_from_tensorflow(reference):
    """The files call a norm's scale gamma and its bias beta, as in bert-base-uncased."""
    ref = reference("bert")
    source = folder.open_weights(ref.folder)
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in source.items()
    }
    assert set(old) != set(source)
    assert set(folder.match_prefix(ref.family, old)) == set(source)
