"""Matches: games by the rules, whose ends and positions are what an evaluation counts."""

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.data.games import connect_four, matches


def uniform(boards):
    num = len(boards.own)
    return jnp.zeros((num, 7)), jnp.zeros(num)


def test_games_keep_to_the_rules_and_are_won_by_whom_the_result_says():
    play = jax.jit(lambda key: matches.match(uniform, key, "minimax", False, 6, 1))
    played = jax.tree.map(np.asarray, play(jax.random.key(0)))
    turn, over = jax.jit(connect_four.play), jax.jit(lambda b: (connect_four.lost(b), connect_four.over(b)))
    for game in range(6):
        board, num = connect_four.empty(), int(played.said.running[:, game].sum())
        for number in range(num):
            np.testing.assert_array_equal(played.said.own[number, game], board.own)
            move = played.said.moves[number, game]
            assert connect_four.legal(board)[move]
            board = turn(board, move)
            lost, ended = over(board)
            assert bool(ended) == (number == num - 1)
        by_model = (num - 1) % 2 == game % 2
        assert played.result[game] == (0 if not lost else 1 if by_model else -1)
    assert (played.result < 0).any()  # the network knows nothing, and minimax wins
