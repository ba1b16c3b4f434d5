"""Zeros that stay zero through every update, whatever the optimizer, and zeros that become more by
a schedule."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, normal
from bigmodel_jax.optim import Group, OptimConfig
from bigmodel_jax.optim.pruning import PruneConfig, sparsity_at, targets
from bigmodel_jax.optim.schedules import PlateauConfig

LAYERS, WIDTH, TOTAL = 3, 8, 20
SPEC = {
    "embed": Param((5, WIDTH), ("vocab", "embed"), normal(1.0)),
    "layers": params.stack({"w": Param((WIDTH, WIDTH), ("embed", "mlp"), normal(1.0))}, LAYERS),
    "norm": Param((WIDTH,), ("embed",), normal(1.0)),
}
KEEP = PruneConfig(keep=True)
CUBIC = PruneConfig(sparsity=0.75, begin=0.1, end=0.6, every=3)


def trained(cfg: OptimConfig, steps: int, zeros: float = 0.0):
    """The weights after each step, with noise for gradients; zeros: the share of layers/w that is
    zero at first."""
    tree = params.init(SPEC, jax.random.key(0))
    w = tree["layers"]["w"]
    tree["layers"]["w"] = jnp.where(jax.random.uniform(jax.random.key(2), w.shape) < zeros, 0.0, w)
    optimizer = cfg.make(SPEC, TOTAL)
    state, average, found = optimizer.tx.init(tree), tree, [tree]

    @jax.jit
    def step(tree, state, average, key):
        grads = jax.tree.map(lambda x: jax.random.normal(key, x.shape), tree)
        updates, state = optimizer.tx.update(grads, state, tree, grad_norm=jnp.ones(()), value=jnp.ones(()))
        tree = optax.apply_updates(tree, updates)
        return tree, state, optimizer.average(state, tree, average) if optimizer.average else average

    for n in range(steps):
        tree, state, average = step(tree, state, average, jax.random.key(100 + n))
        found.append(tree)
    return found, average


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "muon"])
def test_zeros_stay_exactly_zero_and_all_else_moves(name):
    found, _ = trained(OptimConfig(name=name, lr=0.1, prune=KEEP), 4, zeros=0.5)
    zero = np.asarray(found[0]["layers"]["w"]) == 0
    assert 0.3 < zero.mean() < 0.7
    for tree in found[1:]:
        np.testing.assert_array_equal(np.asarray(tree["layers"]["w"]) == 0, zero)
    assert (np.asarray(found[-1]["layers"]["w"]) != np.asarray(found[0]["layers"]["w"]))[~zero].all()


def test_groups_and_the_average_keep_zeros_too():
    cfg = OptimConfig(lr=0.1, prune=KEEP, ema_decay=0.5, groups=(Group("layers/.*", lr=0.2),))
    found, average = trained(cfg, 4, zeros=0.5)
    for tree in (found[-1], average):
        np.testing.assert_array_equal(np.asarray(tree["layers"]["w"]) == 0, np.asarray(found[0]["layers"]["w"]) == 0)


def test_the_schedule_is_cubic_and_each_matrix_has_exactly_its_share():
    found, _ = trained(OptimConfig(lr=0.01, prune=CUBIC), TOTAL)
    shares = [np.asarray(tree["layers"]["w"] == 0).reshape(LAYERS, -1).mean(1) for tree in found[1:]]
    first, last = round(0.1 * TOTAL), round(0.6 * TOTAL)
    wanted = 0.0
    for count, share in enumerate(shares):
        if first <= count <= last and ((count - first) % 3 == 0 or count == last):
            x = (count - first) / (last - first)
            wanted = round(0.75 * (1 - (1 - x) ** 3) * WIDTH * WIDTH) / WIDTH**2
        np.testing.assert_array_equal(share, wanted)
    assert shares[-1][0] == 0.75
    assert not np.asarray(found[-1]["embed"] == 0).any(), "tables are not pruned"


def test_a_plateau_does_not_scale_the_updates_that_prune():
    """The loss of `trained` never falls, so the plateau's factor is soon below 1."""
    plateau = PlateauConfig(factor=0.5, patience=1, window=1)
    found, _ = trained(OptimConfig(lr=0.01, prune=CUBIC, schedule="plateau", plateau=plateau), TOTAL)
    shares = [np.asarray(tree["layers"]["w"] == 0).reshape(LAYERS, -1).mean(1) for tree in found]
    np.testing.assert_array_equal(shares[-1], 0.75)


def test_a_weight_that_went_does_not_come_back():
    found, average = trained(OptimConfig(lr=0.3, prune=CUBIC, ema_decay=0.9), TOTAL)
    zero = [np.asarray(tree["layers"]["w"]) == 0 for tree in found]
    assert all((~b & a).sum() == 0 for a, b in itertools.pairwise(zero))
    np.testing.assert_array_equal(np.asarray(average["layers"]["w"]) == 0, zero[-1])


def test_the_schedule_begins_at_nothing_and_ends_at_the_sparsity():
    assert float(sparsity_at(CUBIC, 2, TOTAL)) == 0
    assert float(sparsity_at(CUBIC, 12, TOTAL)) == pytest.approx(0.75)
    assert float(sparsity_at(CUBIC, 19, TOTAL)) == pytest.approx(0.75)


def test_without_it_the_optimizer_is_as_it_was():
    plain, _ = trained(OptimConfig(lr=0.1), 2)
    state = OptimConfig(lr=0.1).make(SPEC, TOTAL).tx.init(plain[0])
    kept = OptimConfig(lr=0.1, prune=KEEP).make(SPEC, TOTAL).tx.init(plain[0])
    assert jax.tree.structure(state) == jax.tree.structure(kept), "a pruned run's moments have the same names"


def test_targets_are_matrices_by_a_pattern_or_all_but_tables():
    assert list(targets("", SPEC)) == ["layers/w"]
    assert list(targets("embed", SPEC)) == ["embed"]
    for pattern, says in (
        ("layer/w", "matches no trained matrix's whole path; the nearest: layers/w"),
        ("(", "not a regular"),
    ):
        with pytest.raises(ValueError, match=says):
            targets(pattern, SPEC)


def test_what_does_not_fit_is_one_line():
    with pytest.raises(ValueError, match=r"optim\.prune\.end = 0\.1; it must be above optim\.prune\.begin = 0\.5"):
        OptimConfig(prune=PruneConfig(sparsity=0.5, begin=0.5, end=0.1)).validate(10)
    free = OptimConfig(name="schedule_free_adamw", schedule="constant")
    for prune, says in ((KEEP, "prune.keep = True"), (CUBIC, "prune.sparsity = 0.75")):
        with pytest.raises(ValueError, match=f"optim.{says} with a schedule-free optimizer"):
            dataclasses.replace(free, prune=prune).make(SPEC, TOTAL)
