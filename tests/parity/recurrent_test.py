"""Recurrent language models against torch.nn.RNN, LSTM and GRU: outputs, gradients, packing,
padding and decoding.

Tolerance 1e-4 absolute; the logits have a standard deviation of about 1.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import params
from bigmodel_jax.inference.generate import generate
from bigmodel_jax.models import rnn
from bigmodel_jax.models.rnn import RNNConfig
from bigmodel_jax.objectives import NextToken
from reference import distance, fixture_folder

TOLERANCE = 1e-4
GATES = {"rnn": [""], "lstm": ["i", "f", "g", "o"], "gru": ["r", "z", "n"]}

every_cell = pytest.mark.parametrize("cell", GATES)


def layer_from_torch(cell: str, tensors: dict, number: int, *, gradient: bool) -> params.Tree:
    """Flax's cell has one bias where torch has two that are only ever added; its gradient is that
    of either."""

    def gates(name: str) -> list[np.ndarray]:
        return np.split(tensors[f"cells.{name}_l{number}"], len(GATES[cell]))

    weights = zip(GATES[cell], *map(gates, ("weight_ih", "weight_hh", "bias_ih", "bias_hh")), strict=True)
    tree = {}
    for gate, w_i, w_h, b_i, b_h in weights:
        side = "h" if cell == "lstm" else "i"
        separate = (cell, gate) == ("gru", "n")  # the reset gate stands between the two
        tree |= {f"i{gate}/kernel": w_i.T, f"h{gate}/kernel": w_h.T}
        tree[f"{side}{gate}/bias"] = b_i if separate or gradient else b_i + b_h
        tree |= {"hn/bias": b_h} if separate else {}
    return params.from_paths(tree)


def from_torch(cell: str, tensors: dict, *, gradient: bool = False) -> params.Tree:
    head = {"table": tensors["head.weight"], "bias": tensors["head.bias"]}
    layers = {f"layer{i}": layer_from_torch(cell, tensors, i, gradient=gradient) for i in range(2)}
    return {"embed": {"table": tensors["embed.weight"]}, "head": head} | layers


@pytest.fixture(scope="module")
def reference(request, tmp_path_factory):
    @functools.cache
    def load(cell):
        python = request.config.getoption("--reference-python")
        path = fixture_folder(cell, python, tmp_path_factory.mktemp("reference"))
        with np.load(path / "reference.npz") as arrays:
            arrays = dict(arrays)
        tree = from_torch(cell, load_file(path / "model.safetensors"))
        gradients = from_torch(cell, load_file(path / "gradients.safetensors"), gradient=True)
        model = RNNConfig(cell=cell, vocab_size=96, embed_dim=12, hidden_dim=20, max_seq_len=64)
        assert jax.tree.map(np.shape, tree) == params.map_spec(lambda p: p.shape, model.make().spec)
        return model, model.make(), tree, gradients, arrays

    return load


def logits(model, tree, tokens, **batch):
    batch = {name: jnp.asarray(x, jnp.int32) for name, x in {"tokens": tokens, **batch}.items()}
    return jax.jit(model.apply)(tree, batch).value


@every_cell
def test_logits_and_outputs(cell, reference, measured):
    cfg, model, tree, _, arrays = reference(cell)
    assert 0.3 < arrays["logits"].std() < 30
    tokens = jnp.asarray(arrays["tokens"], jnp.int32)
    outputs = jax.jit(lambda p: rnn.run(cfg, p, {"tokens": tokens}, None, None)[0])(tree)
    assert measured(cell, "forward", distance(outputs, arrays["outputs"])) <= TOLERANCE
    assert measured(cell, "forward", distance(logits(model, tree, tokens), arrays["logits"])) <= TOLERANCE


@every_cell
def test_logits_of_packed_documents_with_padding(cell, reference, measured):
    _, model, tree, _, arrays = reference(cell)
    documents = [arrays[f"packed/tokens_{n}"] for n in (0, 1)]
    tokens = np.concatenate([documents[0], np.zeros((1, 3)), documents[1], np.zeros((1, 2))], axis=1)
    segments = np.repeat([1, 0, 2, 0], [5, 3, 8, 2])[None]
    positions = np.concatenate([np.arange(5), np.zeros(3), np.arange(8), np.zeros(2)])[None]
    ours = logits(model, tree, tokens, positions=positions, segment_ids=segments)[:, segments[0] > 0]
    theirs = np.concatenate([arrays[f"packed/logits_{n}"] for n in (0, 1)], axis=1)
    assert measured(cell, "forward", distance(ours, theirs)) <= TOLERANCE


@every_cell
def test_gradients_of_every_parameter(cell, reference, measured):
    """Errors are relative to the norm of the parameter's gradient."""
    _, model, tree, theirs, arrays = reference(cell)
    tokens = jnp.asarray(arrays["tokens"], jnp.int32)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": jnp.ones(tokens[:, 1:].shape)}

    def loss(tree):
        mean = NextToken().loss(model, tree, batch, rng=None, train=True).mean
        return mean.total / mean.count

    value, ours = jax.jit(jax.value_and_grad(loss))(tree)
    assert abs(float(value) - float(arrays["loss"])) <= TOLERANCE
    theirs, ours = params.paths(theirs), params.paths(ours)
    errors = {path: distance(g, theirs[path]) / np.linalg.norm(theirs[path]) for path, g in ours.items()}
    worst = max(errors, key=errors.get)
    assert measured(cell, "backward", errors[worst]) <= TOLERANCE, worst


@every_cell
def test_decoding_equals_the_full_forward(cell, reference, measured):
    _, model, tree, _, arrays = reference(cell)
    tokens = jnp.asarray(arrays["tokens"], jnp.int32)
    step, cache, pieces = jax.jit(model.apply), params.empty(model.make_cache(*tokens.shape, jnp.float32)), []
    for start, stop in [(0, 4), *((i, i + 1) for i in range(4, tokens.shape[1]))]:
        positions = jnp.broadcast_to(jnp.arange(start, stop), (tokens.shape[0], stop - start))
        out = step(tree, {"tokens": tokens[:, start:stop], "positions": positions}, cache=cache)
        pieces.append(out.value)
        cache = out.cache
    error = distance(jnp.concatenate(pieces, axis=1), arrays["logits"])
    assert measured(cell, "decode", error) <= TOLERANCE


@every_cell
def test_greedy_generation(cell, reference, measured):
    """Prompts of two lengths are included; the shorter one is padded on the left."""
    _, model, tree, _, arrays = reference(cell)
    prompts, theirs = arrays["greedy/prompt"].tolist(), arrays["greedy/tokens"].tolist()
    sample = SampleConfig(max_tokens=16, temperature=0.0)
    ours = generate(model, tree, prompts, sample, stop=())
    assert measured(cell, "decode", int(np.sum(np.array(ours) != theirs))) == 0
    longer = [prompts[0], prompts[1] + theirs[1][:4]]
    continued = generate(model, tree, longer, SampleConfig(max_tokens=12, temperature=0.0), stop=())
    assert continued == [theirs[0][:12], theirs[1][4:]]
