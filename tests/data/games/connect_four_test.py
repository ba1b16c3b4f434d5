"""The rules of Connect Four on arrays against a plain implementation, over random games."""

import jax
import numpy as np
import pytest

from bigmodel_jax.data.games import connect_four

step = jax.jit(lambda board, column: (after := connect_four.play(board, column), connect_four.over(after)))


def plain_winner(stones: list[list[int]]) -> bool:
    """Whether four equal stones stand in a line in columns that are filled from below."""
    at = {(x, y): who for x, column in enumerate(stones) for y, who in enumerate(column)}
    lines = ((1, 0), (0, 1), (1, 1), (1, -1))
    return any(
        all(at.get((x + i * dx, y + i * dy)) == who for i in range(4)) for (x, y), who in at.items() for dx, dy in lines
    )


@pytest.mark.parametrize("seed", range(6))
def test_random_games_agree(seed):
    draw, columns, board = np.random.default_rng(seed), [[] for _ in range(7)], connect_four.empty()
    for number in range(connect_four.MOST):
        legal = [x for x in range(7) if len(columns[x]) < 6]
        assert np.flatnonzero(connect_four.legal(board)).tolist() == legal
        column = int(draw.choice(legal))
        columns[column].append(number % 2)
        board, over = step(board, column)
        won = plain_winner(columns)
        assert bool(connect_four.lost(board)) == won
        assert bool(over) == (won or number + 1 == connect_four.MOST)
        mover = np.asarray(board.other)
        expected = [(5 - y, x) for x in range(7) for y, who in enumerate(columns[x]) if who == number % 2]
        assert sorted(zip(*np.nonzero(mover), strict=True)) == sorted(expected)
        if won:
            break


def test_a_full_board_without_a_line_is_drawn():
    board = np.array([[(0, 1, 1, 0)[(2 * x + y // 3) % 4] for x in range(7)] for y in range(6)], bool)
    full = connect_four.Board(board, ~board)
    assert not connect_four.four(full.own)
    assert not connect_four.four(full.other)
    assert bool(connect_four.over(full))
    assert not bool(connect_four.lost(full))
