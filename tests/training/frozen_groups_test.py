"""Whole runs with a frozen group: it is kept once, as a constant, and runs of 0.1.0 that saved it
with the rest go on."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import CheckpointConfig
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.optim import Group
from bigmodel_jax.training.fresh import fresh_state
from bigmodel_jax.training.saved import load_weights
from bigmodel_jax.training.state import abstract_state, init_constants
from constants_test import Features, leaves, run_config
from loop_test import run


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """(config, folder) of a whole run of 4 steps whose first matrix a group freezes."""
    folder = tmp_path_factory.mktemp("frozen")
    config = run_config(folder, Features(kind="trained"))
    config = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, groups=(Group("features", freeze=True),))
    )
    run(config, folder / "run")
    return config, folder / "run"


def all_of(config, folder, which=""):
    return params.paths(jax.device_get(load_weights(config, folder, sharding.make_mesh(config.parallel), which)[0]))


def as_before(config, source, folder):
    """The run as 0.1.0 left it at step 2: a save repeats what is frozen among `params` and `ema`,
    and nothing else has it."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("checkpoints", "constants", "holder.json"))
    mesh = sharding.make_mesh(config.parallel)
    with store.open_store(source / "checkpoints", CheckpointConfig()) as saves:
        found = store.restore(saves, abstract_state(config, mesh), 2)
    fixed = init_constants(config, mesh)
    more = {
        "params": params.merge(found.state.params, fixed),
        "ema": params.merge(found.state.ema, cast(fixed, "float32")),
    }
    with store.open_store(folder / "checkpoints", config.checkpoint) as saves:
        store.save(saves, 2, found.state.replace(**more), found.data_state, found.config)


@pytest.mark.slow
def test_checkpoints_do_not_repeat_what_is_frozen_and_it_keeps_its_bits(frozen):
    config, folder = frozen
    assert not any("features" in leaf for leaf in leaves(folder, 4))
    mesh = sharding.make_mesh(config.parallel)
    np.testing.assert_array_equal(all_of(config, folder)["features"], init_constants(config, mesh)["features"])


@pytest.mark.slow
def test_a_run_that_saved_it_with_the_rest_is_read_forked_and_goes_on(frozen, tmp_path):
    config, straight = frozen
    as_before(config, straight, tmp_path / "run")
    assert {"params/features", "ema/features"} <= leaves(tmp_path / "run", 2)
    jax.tree.map(np.testing.assert_array_equal, all_of(config, tmp_path / "run"), all_of(config, straight, "2"))
    fork = dataclasses.replace(
        config, train=dataclasses.replace(config.train, init_from=str(tmp_path / "run"), init_state="all")
    )
    assert int(fresh_state(fork, sharding.make_mesh(fork.parallel)).state.step) == 2
    said, _ = run(config, tmp_path / "run")
    assert "Resuming at step 2." in said
    assert leaves(tmp_path / "run", 4) == leaves(straight, 4)
    shutil.rmtree(tmp_path / "run/checkpoints/2")  # its copy of what is frozen is not needed any more
    jax.tree.map(np.testing.assert_array_equal, all_of(config, tmp_path / "run"), all_of(config, straight))


@pytest.mark.slow
def test_what_was_frozen_trains_in_a_run_that_starts_from_there(frozen):
    config, folder = frozen
    train = dataclasses.replace(config.train, init_from=str(folder))
    free = dataclasses.replace(config, optim=dataclasses.replace(config.optim, groups=()), train=train)
    fresh = fresh_state(free, sharding.make_mesh(free.parallel))
    assert fresh.missing == []
    np.testing.assert_array_equal(fresh.state.params["features"], all_of(config, folder)["features"])
