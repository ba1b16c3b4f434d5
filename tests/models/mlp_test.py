"""The plain-function classifier against the formula, and its dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig, Rules, make_mesh, shardings
from bigmodel_jax.models.mlp import MLPConfig

CFG = MLPConfig.tiny()
BATCH = {"image": np.random.default_rng(0).random((4, 8, 8, 1), np.float32)}


def test_is_the_formula():
    model = CFG.make()
    p = params.init(model.spec, jax.random.key(0))
    x = BATCH["image"].reshape(4, -1)
    for name in ("hidden0", "hidden1"):
        x = np.maximum(x @ p[name]["kernel"] + p[name]["bias"], 0)
    np.testing.assert_allclose(model.apply(p, BATCH).value, x @ p["head"]["kernel"] + p["head"]["bias"], atol=1e-5)


def test_dropout_keeps_the_mean_and_only_in_training():
    wide = dataclasses.replace(CFG, hidden_dims=(64,), dropout=0.5)
    model = wide.make()
    p = params.init(model.spec, jax.random.key(0))
    evaluated = model.apply(p, BATCH, rng=jax.random.key(1)).value
    np.testing.assert_array_equal(evaluated, dataclasses.replace(wide, dropout=0.0).make().apply(p, BATCH).value)
    keys = jax.random.split(jax.random.key(2), 4000)
    draws = jax.jit(jax.vmap(lambda k: model.apply(p, BATCH, rng=k, train=True).value))(keys)
    assert draws.std(0).min() > 0.05
    # One hidden layer: the logits are linear in what is dropped, so their mean is the evaluation's
    # logits.
    np.testing.assert_allclose(draws.mean(0), evaluated, atol=5 * float(draws.std(0).max()) / 4000**0.5)


def test_each_layer_drops_its_own():
    cfg = dataclasses.replace(CFG, hidden_dims=(64, 64), dropout=0.5)
    p = {f"hidden{i}": {"kernel": jnp.eye(64), "bias": jnp.zeros(64)} for i in range(2)}
    p["head"] = {"kernel": jnp.eye(64), "bias": jnp.zeros(64)}
    out = cfg.make().apply(p, {"image": jnp.ones((64, 8, 8, 1))}, rng=jax.random.key(0), train=True).value
    assert abs(float((out > 0).mean()) - 0.25) < 0.05, "both layers drop half, independently"


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_every_matrix_is_split_over_fsdp_and_tensor(num_layers):
    mesh = make_mesh(ParallelConfig(data=1, fsdp=4, tensor=2))
    spec = MLPConfig(hidden_dims=(16,) * num_layers).make().spec
    for path, placed in params.paths(shardings(spec, mesh, Rules())).items():
        if path.startswith("hidden") and path.endswith("kernel"):
            assert set(placed.spec) == {"fsdp", "tensor"}, path
