"""Search with a network that knows nothing, and the fixed players."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.data.games import connect_four, players, search

WIN, BLOCK = ([2, 2, 2, 2, 2, 2, 0, 1, 0, 1, 0, 1], 0), ([0, 6, 0, 6, 0], 0)
MIDDLE = ([3, 6, 3, 6, 3], 3)


def uniform(boards):
    num = len(boards.own)
    return jnp.zeros((num, 7)), jnp.zeros(num)


def after(moves):
    board = connect_four.empty()
    for move in moves:
        board = connect_four.play(board, move)
    return board


@functools.cache
def boards():
    return jax.tree.map(lambda *xs: jnp.stack(xs), *[after(moves) for moves, _ in (WIN, BLOCK, MIDDLE)])


RIGHT = [move for _, move in (WIN, BLOCK, MIDDLE)]


def test_a_win_in_one_is_found_and_a_loss_in_one_is_blocked():
    found = jax.jit(lambda boards: search.search(uniform, boards, 64))(boards())
    assert np.argmax(found.visits, -1).tolist() == RIGHT
    assert found.visits.sum(-1).tolist() == [64] * 3
    full = np.asarray(~connect_four.legal(boards()))
    assert full.any()
    assert not np.asarray(found.visits)[full].any()
    assert found.value[0] > 0.5
    assert found.value[1] < 0
    assert found.value[2] < 0


def test_minimax_sees_two_moves():
    minimax = jax.jit(players.minimax_player)
    for seed in range(4):
        assert minimax(jax.random.key(seed), boards()).tolist() == RIGHT


def test_the_random_player_keeps_to_the_rules():
    board = jax.tree.map(lambda x: jnp.repeat(x[None], 200, 0), after([2, 2, 2, 2, 2, 2]))
    assert set(players.random_player(jax.random.key(0), board).tolist()) == {0, 1, 3, 4, 5, 6}
