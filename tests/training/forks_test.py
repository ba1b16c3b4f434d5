"""A run that starts where another one stands: with its weights alone, or with its whole state."""

import dataclasses

import jax
import numpy as np
import pytest
from rich.console import Console

from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.beginning import begin
from bigmodel_jax.training.run import train
from bigmodel_jax.training.saved import load_weights
from loop_test import config_of, records, run


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(config, folder) of a run of 6 steps with saves of steps 3 and 6."""
    folder = tmp_path_factory.mktemp("source")
    run(config_of(folder), folder / "run")
    return config_of(folder), folder / "run"


def fork(source, which: str, **train):
    config, folder = source
    return dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=f"{folder}{which}", **train))


@pytest.mark.slow
def test_a_fork_of_all_goes_on_bit_for_bit_as_its_source_did(source, tmp_path):
    said, numbers = run(fork(source, "@3", init_state="all"), tmp_path / "fork")
    assert f"Starting from the weights, optimizer and step (3) of {source[1]}@3." in said
    assert "Resuming" not in said
    assert "3 steps in" in said
    assert numbers[1:4] == [3, 4, 5]
    mesh = sharding.make_mesh(ParallelConfig(), jax.devices()[:1])
    jax.tree.map(
        np.testing.assert_array_equal,
        *(load_weights(source[0], folder, mesh)[0] for folder in (source[1], tmp_path / "fork")),
    )
    assert records(source[1])[6]["loss"] == records(tmp_path / "fork")[6]["loss"]


@pytest.mark.slow
def test_a_fork_of_weights_begins_at_step_0_with_those_of_that_step(source, tmp_path):
    mesh = sharding.make_mesh(source[0].parallel)
    state, *_ = begin(fork(source, "@3"), mesh, Console(quiet=True))
    assert int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, load_weights(source[0], source[1], mesh, "3")[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "train", "changes", "says"),
    [
        ("@4", {}, {}, r"train\.init_from = '.*@4': that step is not kept; .* holds steps 3, 6$"),
        ("@best", {}, {}, r"train\.init_from = '.*@best': .* holds steps 3, 6, and checkpoint\.best_metric is empty"),
        ("@x", {}, {}, r"train\.init_from = '.*@x': it must be a step or 'best'"),
        ("/no@3", {}, {}, r"train\.init_from = '.*/no' is not a run's folder"),
        ("@3", {"init_state": "all", "steps": 3}, {}, r"train\.steps = 3 is not above step 3, where .*@3 stands"),
        (
            "@3",
            {"init_state": "all"},
            {"optim": OptimConfig(name="lion")},
            r"init_state = 'all': .* optimizer: .*; 'we",
        ),
    ],
    ids=["step", "best", "word", "folder", "steps", "optimizer"],
)
def test_what_cannot_be_forked_is_refused_in_one_line(source, tmp_path, which, train, changes, says):
    with pytest.raises(ValueError, match=says) as error:
        run(dataclasses.replace(fork(source, which, **train), **changes), tmp_path / "fork")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "fork").exists()


def test_all_needs_a_run_to_take_it_from(tmp_path):
    config = config_of(tmp_path)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, init_state="all"))
    with pytest.raises(ValueError, match=r"train\.init_state = 'all' needs train\.init_from, such as"):
        validate(config)


@pytest.mark.slow
def test_a_changed_config_is_told_of_the_fork(source):
    config, folder = source
    changed = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=0.5))
    with pytest.raises(ValueError, match=rf"optim\.lr .*--train\.init_from {folder}@STEP .*--train\.init_state all"):
        train(changed, folder)


@pytest.mark.slow
@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_an_average_begins_at_the_weights_where_the_source_has_none(source, tmp_path, ema_decay):
    config, _ = source
    plain = dataclasses.replace(config, optim=dataclasses.replace(config.optim, ema_decay=0.0))
    run(plain, tmp_path / "plain")
    forked = fork((config, tmp_path / "plain"), "", init_state="all", steps=9)
    forked = dataclasses.replace(forked, optim=dataclasses.replace(config.optim, ema_decay=ema_decay))
    state, *_ = begin(forked, sharding.make_mesh(config.parallel), Console(quiet=True))
    assert int(state.step) == 6
    assert (state.ema is None) == (ema_decay == 0)
    if state.ema is not None:
        jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
        assert not {id(x) for x in jax.tree.leaves(state.ema)} & {id(x) for x in jax.tree.leaves(state.params)}
