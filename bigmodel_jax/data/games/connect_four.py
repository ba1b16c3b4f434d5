"""Connect Four as pure functions on arrays: 6 rows, 7 columns, four in a line win.

A board is stored from the view of the player to move. Boards may have batch dimensions: every
function except `play` takes (..., 6, 7).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

ROWS, COLUMNS, LINE = 6, 7, 4
MOST = ROWS * COLUMNS  # moves of the longest game
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))  # (down, right) steps along a line


class Board(NamedTuple):
    """The stones of the player to move and of the opponent: (..., 6, 7) bool. Row 0 is the top."""

    own: jax.Array
    other: jax.Array


def empty(batch: tuple[int, ...] = ()) -> Board:
    """Return empty boards with these batch dimensions."""
    return Board(jnp.zeros((*batch, ROWS, COLUMNS), bool), jnp.zeros((*batch, ROWS, COLUMNS), bool))


def legal(board: Board) -> jax.Array:
    """Return (..., 7) bool: the columns that have room."""
    return ~(board.own | board.other)[..., 0, :]


def play(board: Board, column: jax.Array) -> Board:
    """Return the board after a stone in `column` (), as the opponent sees it.

    A move in a full column adds no stone.
    """
    taken = (board.own | board.other)[:, column]
    # The stone falls onto the stones that are already in the column.
    row = ROWS - 1 - jnp.sum(taken)
    stone = (jnp.arange(ROWS)[:, None] == row) & (jnp.arange(COLUMNS)[None] == column)
    return Board(board.other, board.own | stone)


def four(stones: jax.Array) -> jax.Array:
    """Return (...) bool: whether four of the stones (..., 6, 7) form a line."""
    found = jnp.zeros(stones.shape[:-2], bool)
    for down, right in DIRECTIONS:
        height, width = ROWS - down * (LINE - 1), COLUMNS - abs(right) * (LINE - 1)
        # A line to the lower left starts at a column that leaves room on its left.
        left = LINE - 1 if right < 0 else 0
        line = jnp.ones((*stones.shape[:-2], height, width), bool)
        for i in range(LINE):
            row, column = down * i, left + right * i
            line &= stones[..., row : row + height, column : column + width]
        found |= line.any((-2, -1))
    return found


def lost(board: Board) -> jax.Array:
    """Return (...) bool: whether the opponent's last stone completed a line."""
    return four(board.other)


def over(board: Board) -> jax.Array:
    """Return (...) bool: whether the game is lost, or drawn because no column has room."""
    return lost(board) | ~legal(board).any(-1)


def planes(board: Board) -> jax.Array:
    """Return a model's input (..., 6, 7, 2) float32: own stones, then the opponent's."""
    return jnp.stack(board, -1).astype(jnp.float32)


def until(done: Callable[[Any], jax.Array], turn: Callable) -> Callable:
    """Return the body of a scan over turns that skips the computation once all games are over.

    A skipped turn outputs zeros.
    """

    def body(carry: Any, number: jax.Array) -> tuple[Any, Any]:
        said = jax.eval_shape(turn, carry, number)[1]
        none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), said)
        return jax.lax.cond(done(carry), lambda: (carry, none), lambda: turn(carry, number))

    return body
