"""Connect Four as pure functions on arrays: 6 rows, 7 columns, four in a line win.

A board is seen by the player who is to move. B boards may stand in front: every function but `play` takes (..., 6, 7).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

ROWS, COLUMNS, LINE = 6, 7, 4
MOST = ROWS * COLUMNS  # moves of the longest game
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))


class Board(NamedTuple):
    """own, other (..., 6, 7) bool: the stones of the player to move and of the other one; row 0 is the top."""

    own: jax.Array
    other: jax.Array


def empty(batch: tuple[int, ...] = ()) -> Board:
    return Board(jnp.zeros((*batch, ROWS, COLUMNS), bool), jnp.zeros((*batch, ROWS, COLUMNS), bool))


def legal(board: Board) -> jax.Array:
    """(..., 7) bool: the columns that have room."""
    return ~(board.own | board.other)[..., 0, :]


def play(board: Board, column: jax.Array) -> Board:
    """The board after a stone in `column` (), seen by the other player; a full column leaves the stones as they are."""
    taken = (board.own | board.other)[:, column]
    row = ROWS - 1 - jnp.sum(taken)
    stone = (jnp.arange(ROWS)[:, None] == row) & (jnp.arange(COLUMNS)[None] == column)
    return Board(board.other, board.own | stone)


def four(stones: jax.Array) -> jax.Array:
    """(...) bool: whether four of the stones (..., 6, 7) stand in a line."""
    found = jnp.zeros(stones.shape[:-2], bool)
    for down, right in DIRECTIONS:
        height, width = ROWS - down * (LINE - 1), COLUMNS - abs(right) * (LINE - 1)
        left = LINE - 1 if right < 0 else 0
        line = jnp.ones((*stones.shape[:-2], height, width), bool)
        for i in range(LINE):
            row, column = down * i, left + right * i
            line &= stones[..., row : row + height, column : column + width]
        found |= line.any((-2, -1))
    return found


def lost(board: Board) -> jax.Array:
    """(...) bool: whether the player to move has lost: the other one's last stone completed a line."""
    return four(board.other)


def over(board: Board) -> jax.Array:
    """(...) bool: lost, or drawn because no column has room."""
    return lost(board) | ~legal(board).any(-1)


def planes(board: Board) -> jax.Array:
    """(..., 6, 7, 2) float32: what a model reads."""
    return jnp.stack(board, -1).astype(jnp.float32)


def until(done: Callable[[Any], jax.Array], turn: Callable) -> Callable:
    """The body of a scan over the turns of games, which leaves out the turns, at zero, once all games are over."""

    def body(carry: Any, number: jax.Array) -> tuple[Any, Any]:
        said = jax.eval_shape(turn, carry, number)[1]
        none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), said)
        return jax.lax.cond(done(carry), lambda: (carry, none), lambda: turn(carry, number))

    return body
