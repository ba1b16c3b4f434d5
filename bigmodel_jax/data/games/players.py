"""Fixed players: functions (key, boards) -> columns (G,) that are compiled with the game loop."""

import jax
import jax.numpy as jnp

from bigmodel_jax.data.games import connect_four
from bigmodel_jax.data.games.connect_four import COLUMNS, Board


def drawn(key: jax.Array, scores: jax.Array, legal: jax.Array) -> jax.Array:
    """Return (G,): a legal move with the greatest score (G, 7), drawn uniformly among equals."""
    scores = jnp.where(legal, scores, -jnp.inf)
    best = scores == scores.max(-1, keepdims=True)
    return jnp.argmax(jnp.where(best, jax.random.uniform(key, scores.shape), -1.0), -1)


def random_player(key: jax.Array, boards: Board) -> jax.Array:
    """Play a random legal move."""
    legal = connect_four.legal(boards)
    return drawn(key, jnp.zeros(legal.shape), legal)


def minimax_player(key: jax.Array, boards: Board) -> jax.Array:
    """Play minimax of depth 2: a leaf scores 1 for a win, -1 for a loss and 0 otherwise."""
    columns = jnp.arange(COLUMNS)
    every = jax.vmap(jax.vmap(connect_four.play, (None, 0)), (0, None))
    after = every(boards, columns)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), after)
    # A reply wins if the opponent's move leaves the player with a lost board. A move in a full
    # column changes no stone, so it must not count as a winning reply.
    replies = connect_four.lost(every(flat, columns)) & connect_four.legal(flat)
    answered = replies.any(-1).reshape(-1, COLUMNS)
    scores = jnp.where(connect_four.lost(after), 1.0, jnp.where(answered, -1.0, 0.0))
    return drawn(key, scores, connect_four.legal(boards))


OPPONENTS = {"random": random_player, "minimax": minimax_player}
