"""Penalties, rates by layer and gradual unfreezing, as groups and as fields of the optimizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, normal
from bigmodel_jax.core.ranges import check
from bigmodel_jax.optim import Group, OptimConfig

LAYERS, WIDTH = 4, 3
SPEC = {
    "embed": Param((5, WIDTH), ("vocab", "embed"), normal(1.0)),
    "layers": params.stack({"w": Param((WIDTH, WIDTH), ("embed", "mlp"), normal(1.0))}, LAYERS),
    "norm": Param((WIDTH,), ("embed",), normal(1.0)),
}
SGD = OptimConfig(name="sgd", lr=1.0, betas=(0.0, 0.9), weight_decay=0.0, schedule="constant", clip=0.0)


def moved(cfg: OptimConfig, steps: int = 1, gradient: float = 0.0, total: int = 8) -> tuple[dict, list[dict]]:
    """(weights before, the updates of each step) under a gradient that is everywhere the same."""
    tree = params.init(SPEC, jax.random.key(0))
    tx, updates = cfg.make(SPEC, total).tx, []
    state, grads = tx.init(tree), jax.tree.map(lambda x: jnp.full_like(x, gradient), tree)
    for _ in range(steps):
        update, state = tx.update(grads, state, tree, grad_norm=jnp.ones(()), value=jnp.ones(()))
        updates.append(params.paths(jax.tree.map(np.asarray, update)))
    return params.paths(jax.tree.map(np.asarray, tree)), updates


def test_l2_and_l1_are_gradients_of_the_weights_that_decay():
    before, (update,) = moved(dataclasses.replace(SGD, l2=0.1, l1=0.01))
    w = before["layers/w"]
    np.testing.assert_allclose(update["layers/w"], -(0.1 * w + 0.01 * np.sign(w)), rtol=1e-5)
    assert not update["norm"].any(), "a vector has no penalty"


def test_l2_goes_through_adams_moments_and_decay_does_not():
    adam = OptimConfig(lr=0.5, eps=0.0, weight_decay=0.0, schedule="constant", clip=0.0)
    before, (coupled,) = moved(dataclasses.replace(adam, l2=0.1))
    np.testing.assert_allclose(coupled["layers/w"], -0.5 * np.sign(before["layers/w"]), rtol=1e-4)
    _, (decoupled,) = moved(dataclasses.replace(adam, weight_decay=0.1, eps=1e-8))
    np.testing.assert_allclose(decoupled["layers/w"], -0.05 * before["layers/w"], rtol=1e-4)


def test_a_groups_penalty_is_its_own():
    before, (update,) = moved(dataclasses.replace(SGD, l2=0.1, groups=(Group("embed", l2=0.0, l1=1.0),)))
    np.testing.assert_allclose(update["embed"], -np.sign(before["embed"]))
    np.testing.assert_allclose(update["layers/w"], -0.1 * before["layers/w"], rtol=1e-5)


def test_each_layer_has_the_rate_of_the_one_above_times_the_decay():
    _, (update,) = moved(dataclasses.replace(SGD, groups=(Group("layers/.*", layer_decay=0.5),)), gradient=1.0)
    np.testing.assert_allclose(-update["layers/w"][:, 0, 0], [0.125, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(-update["embed"], 1.0)


def test_layers_begin_to_train_one_after_another_from_the_last():
    groups = (Group("layers/.*", unfreeze=0.75), Group("embed", unfreeze=0.5))
    _, updates = moved(dataclasses.replace(SGD, groups=groups), steps=8, gradient=1.0)
    begins = [next(n for n, u in enumerate(updates) if u["layers/w"][layer].any()) for layer in range(LAYERS)]
    assert begins == [6, 4, 2, 0]
    assert [bool(u["embed"].any()) for u in updates] == [False] * 4 + [True] * 4
    assert all(u["norm"].all() for u in updates)


def test_what_has_not_begun_does_not_decay():
    cfg = dataclasses.replace(OptimConfig(lr=0.5, schedule="constant"), groups=(Group("embed", unfreeze=0.5),))
    _, updates = moved(cfg, steps=5, gradient=1.0)
    assert not updates[3]["embed"].any()
    assert updates[4]["embed"].all()


def test_without_them_the_state_is_as_before():
    """A penalty keeps no numbers; a run that is resumed finds its moments under the same names."""
    tree = params.init(SPEC, jax.random.key(0))
    plain, penalised = (c.make(SPEC, 8).tx.init(tree) for c in (SGD, dataclasses.replace(SGD, l1=0.1)))
    assert jax.tree.structure(plain) == jax.tree.structure(penalised)


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match=r"has freeze = True and unfreeze"):
        moved(dataclasses.replace(SGD, groups=(Group("embed", freeze=True, unfreeze=0.5),)))
    with pytest.raises(ValueError, match=r"layer_decay = 0.0; it must be above 0"):
        check(Group("embed", layer_decay=0.0))
