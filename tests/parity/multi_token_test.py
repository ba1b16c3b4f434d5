"""DeepSeek-V3's multi-token prediction against transformers' MtpModel: weights in the names of the
published files."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.models import deepseek
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.pretrained import folder
from reference import fixture_folder, load, read

TOLERANCE = 1e-4
MODULES = 2


@pytest.fixture(scope="module")
def case(request, tmp_path_factory):
    """(config with modules, parameters, gradients of the modules' summed loss, arrays of the
    reference)."""
    python = request.config.getoption("--reference-python")
    path = fixture_folder("deepseek", python, tmp_path_factory.mktemp("reference"))
    ref = load(path)
    cfg = dataclasses.replace(ref.cfg, num_mtp_layers=MODULES, mtp_loss=1.0)
    main = folder.open_weights(path)
    weights, gradients = (
        read(ref.family, cfg, main | dict(folder.open_file(path / name)))
        for name in ("mtp.safetensors", "mtp_gradients.safetensors")
    )
    with np.load(path / "mtp.npz") as arrays:
        return cfg, ref.family, weights, gradients["mtp"], dict(arrays), jnp.asarray(ref.arrays["tokens"], jnp.int32)


def batch_of(tokens):
    weights = jnp.ones(tokens[:, 1:].shape)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def logits_of_modules(cfg, weights, tokens, monkeypatch):
    found = []
    loss = deepseek.multi_token.loss
    monkeypatch.setattr(deepseek.multi_token, "loss", lambda x, *rest: (found.append(x.logits()), loss(x, *rest))[1])
    cfg.make().apply(
        weights, batch_of(tokens) | {"targets": tokens, "tokens": tokens, "weights": 1.0 + 0 * tokens}, train=True
    )
    return found[0]


@pytest.mark.exhaustive  # the loss of the same logits and its gradients are compared below
def test_logits(case, measured, monkeypatch):
    cfg, _, weights, _, arrays, tokens = case
    ours = logits_of_modules(cfg, weights, tokens, monkeypatch)
    for k, logits in enumerate(ours):
        theirs = arrays[f"mtp/logits_{k}"]
        assert 0.3 < theirs.std() < 30
        # The last places hold no token k further on.
        error = float(np.abs(logits[:, : theirs.shape[1]] - theirs).max())
        assert measured("deepseek-mtp", "forward", error) <= TOLERANCE


@pytest.mark.slow
def test_loss_and_gradients(case, measured):
    cfg, _, weights, theirs, arrays, tokens = case
    batch = batch_of(tokens)
    trainable, frozen = params.partition(weights, cfg.make().spec)

    def loss(modules):
        tree = params.merge(trainable | {"mtp": modules}, frozen)
        mean = cfg.make().apply(tree, batch, train=True).losses["mtp_loss"]
        return mean * MODULES * batch["weights"].sum()

    value, ours = jax.jit(jax.value_and_grad(loss))(trainable["mtp"])
    assert abs(float(value) / float(arrays["mtp/loss_sum"]) - 1) <= 1e-5
    theirs = params.paths(theirs)
    errors = {}
    for path, gradient in params.paths(ours).items():
        errors[path] = float(np.abs(gradient - theirs[path]).max() / max(np.linalg.norm(theirs[path]), 1e-3))
    worst = max(errors, key=errors.get)
    assert measured("deepseek-mtp", "backward", errors[worst]) <= TOLERANCE, worst


@pytest.mark.slow
def test_the_objective_adds_the_loss_of_the_modules(case):
    cfg, _, weights, _, arrays, tokens = case
    cfg = dataclasses.replace(cfg, mtp_loss=0.3)
    batch = batch_of(tokens)

    def means(cfg):
        model = cfg.make()
        return jax.jit(lambda tree: NextToken().loss(model, tree, batch, rng=None, train=True).mean)(weights)

    both, alone = means(cfg), means(dataclasses.replace(cfg, num_mtp_layers=0))
    added = 0.3 * arrays["mtp/loss_sum"] / MODULES
    np.testing.assert_allclose(both.total - alone.total, added, rtol=1e-4)
    assert float(both.count) == float(alone.count)


@pytest.mark.slow
def test_export_gives_the_same_bits(case, tmp_path, measured):
    """The modules have the places and names of the published files: behind the last layer."""
    cfg, family, weights, _, _, _ = case
    flat = {path: np.asarray(x) for path, x in params.paths(weights).items()}
    folder.save_params(family, cfg, flat, tmp_path)
    written = folder.open_weights(tmp_path)
    assert "model.layers.4.shared_head.norm.weight" in written
    again = params.paths(read(family, cfg, written))
    differing = [path for path, x in again.items() if np.asarray(x).tobytes() != flat[path].tobytes()]
    assert again.keys() == flat.keys()
    assert measured("deepseek-mtp", "export", len(differing)) == 0, differing
