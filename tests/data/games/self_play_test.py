"""Self-play as training batches: what a batch says of its games, and runs that are resumed to the
last bit."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from bigmodel_jax.core import sharding
from bigmodel_jax.data import TabularData, experience
from bigmodel_jax.data.games import self_play
from bigmodel_jax.models.board import BoardConfig
from bigmodel_jax.training.ending import check_endings
from bigmodel_jax.training.state import init_state
from configs import play_connect4


def tiny():
    config = play_connect4.get_config()
    data = dataclasses.replace(
        config.data, games=4, simulations=3, eval_simulations=2, updates_per_game=2, window=2, sampled_moves=42
    )
    train = dataclasses.replace(config.train, steps=8, batch_size=16)
    optim = dataclasses.replace(config.optim, warmup_steps=1)
    return dataclasses.replace(config, model=BoardConfig.tiny(), data=data, train=train, optim=optim)


def test_a_mirrored_row_is_the_row_from_right_to_left():
    draw = np.random.default_rng(0)
    games = {
        "stones": draw.integers(0, 3, (2, 6, 7)).astype(np.int8),
        "visits": draw.integers(1, 9, (2, 7)).astype(np.int32),
        "outcome": np.array([1, -1], np.int8),
    }
    plain, mirrored = self_play.rows(games), self_play.rows(games, np.array([False, True]))
    for name in ("board", "search_policy", "legal"):
        axis = -2 if name == "board" else -1
        np.testing.assert_array_equal(mirrored[name][0], plain[name][0])
        np.testing.assert_array_equal(mirrored[name][1], np.flip(plain[name][1], axis))
    np.testing.assert_array_equal(mirrored["outcome"], plain["outcome"])
    unpacked = experience.unpacked(experience.packed(games))
    assert all(np.array_equal(unpacked[name], games[name]) for name in games)


@pytest.mark.slow
def test_games_are_played_to_their_ends_and_go_on_after_a_save_bit_for_bit():
    config = tiny()
    mesh = sharding.make_mesh(config.parallel)
    states = [
        init_state(dataclasses.replace(config, train=dataclasses.replace(config.train, seed=s)), mesh) for s in (0, 1)
    ]
    whole = config.data.experience(config, mesh)
    batches, positions = [], []
    for step in range(7):
        positions.append(json.loads(json.dumps(whole.position())))
        batches.append(jax.tree.map(np.asarray, whole.next(states[step >= 4])))
    assert any(not np.array_equal(batches[0]["board"], b["board"]) for b in batches[1:])
    for name, values in batches[0].items():
        assert np.isfinite(values).all(), name
    policy, legal = batches[0]["search_policy"], batches[0]["legal"]
    np.testing.assert_allclose(policy.sum(-1), 1, rtol=1e-6)
    assert not policy[legal == 0].any()
    assert set(batches[0]["outcome"].tolist()) <= {-1.0, 0.0, 1.0}
    for begin in (3, 6):  # inside a round, and where a round begins
        resumed = config.data.experience(config, mesh)
        resumed.seek(begin, positions[begin])
        for step in range(begin, 7):
            again = resumed.next(states[step >= 4])
            for name, values in batches[step].items():
                np.testing.assert_array_equal(np.asarray(again[name]), values, err_msg=f"{name} of step {step}")


def test_a_save_without_its_games_is_refused():
    config = tiny()
    batches = config.data.experience(config, sharding.make_mesh(config.parallel))
    with pytest.raises(ValueError, match="^data: SelfPlayData cannot go on at step 5"):
        batches.seek(5)


def test_an_ending_of_games_wants_data_that_plays():
    config = dataclasses.replace(tiny(), data=TabularData())
    with pytest.raises(ValueError, match="^data: TabularData plays no games; give SelfPlayData$"):
        check_endings(config)
    check_endings(tiny())


def test_matches_want_an_even_number_of_games():
    config = tiny()
    odd = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=5))
    with pytest.raises(ValueError, match=r"^eval.batch_size = 5: the model begins half .* give an even number$"):
        config.data.held_out(odd, sharding.make_mesh(odd.parallel))


def test_several_processes_are_refused(monkeypatch):
    config = tiny()
    mesh = sharding.make_mesh(config.parallel)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="^data: SelfPlayData plays in one process, and this run has 2$"):
        config.data.experience(config, mesh)
