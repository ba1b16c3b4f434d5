"""Players: functions (key, boards) -> columns (G,), compiled with the games that they play."""

import jax
import jax.numpy as jnp

from bigmodel_jax.data.games import connect_four
from bigmodel_jax.data.games.connect_four import COLUMNS, Board


def drawn(key: jax.Array, scores: jax.Array, legal: jax.Array) -> jax.Array:
    """(G,): one of the legal moves of greatest score (G, 7), each of them equally likely."""
    scores = jnp.where(legal, scores, -jnp.inf)
    best = scores == scores.max(-1, keepdims=True)
    return jnp.argmax(jnp.where(best, jax.random.uniform(key, scores.shape), -1.0), -1)


def random_player(key: jax.Array, boards: Board) -> jax.Array:
    legal = connect_four.legal(boards)
    return drawn(key, jnp.zeros(legal.shape), legal)


def minimax_player(key: jax.Array, boards: Board) -> jax.Array:
    """Minimax of depth 2, whose leaves count 1 where it has won, -1 where it has lost and 0 elsewhere; ties are drawn."""
    columns = jnp.arange(COLUMNS)
    every = jax.vmap(jax.vmap(connect_four.play, (None, 0)), (0, None))
    after = every(boards, columns)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), after)
    replies = connect_four.lost(every(flat, columns)) & connect_four.legal(flat)
    answered = replies.any(-1).reshape(-1, COLUMNS)
    scores = jnp.where(connect_four.lost(after), 1.0, jnp.where(answered, -1.0, 0.0))
    return drawn(key, scores, connect_four.legal(boards))


OPPONENTS = {"random": random_player, "minimax": minimax_player}
