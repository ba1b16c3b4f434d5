"""Matches of a model against fixed players: the evaluation of self-play, and sample games.

The model begins half of the games of a match. A draw does not count as a win.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bigmodel_jax.core import params
from bigmodel_jax.data.games import connect_four, players
from bigmodel_jax.data.games.connect_four import MOST
from bigmodel_jax.data.games.network import with_network
from bigmodel_jax.data.games.search import Network, search
from bigmodel_jax.data.loader import Batch, Placement

# Metric of each match -> (opponent, whether the model searches before it moves).
PAIRINGS = {
    "win_random": ("random", True),
    "win_minimax": ("minimax", True),
    "win_random_policy": ("random", False),
    "win_minimax_policy": ("minimax", False),
}

SHOWN = 4  # games that a run's report page shows


class Said(NamedTuple):
    """The record of T turns of G games.

    own, other (T, G, 6, 7); moves, values and running (T, G); policy (T, G, 7), all before the move
    of the turn. `values` and `policy` are the model's, and valid only where the model is to move.
    """

    own: jax.Array
    other: jax.Array
    moves: jax.Array
    values: jax.Array
    policy: jax.Array
    running: jax.Array


class Played(NamedTuple):
    """The turns of a match, and the results (G,): 1 where the model has won, 0 for a draw, -1."""

    said: Said
    result: jax.Array


def match(network: Network, key: jax.Array, opponent: str, searched: bool, games: int, simulations: int) -> Played:
    """Play `games` games, an even number, from the empty board. The model begins games 0, 2, 4, ...

    In each turn the model is to move in every other game. So only half of the boards go through the
    model, and the other half through the opponent.
    """
    start = connect_four.empty((games,)), jnp.zeros(games, bool), jnp.zeros(games)

    def turn(carry, number):
        boards, ended, result = carry
        ours = jnp.arange(games) % 2 == number % 2
        mine, its = (jax.tree.map(lambda x, n=n: _half(x, n), boards) for n in (number % 2, 1 - number % 2))
        # `mine` are the boards on which the model moves, and `its` those of the opponent: (G / 2,
        # ...) each.
        policy, value = decided(network, mine, searched, simulations)
        theirs = players.OPPONENTS[opponent](jax.random.fold_in(key, number), its)
        # Both games of a pair store the value of the one in which the model is to move.
        policy, value = (jnp.repeat(x, 2, 0) for x in (policy, value))
        moves = jnp.where(ours, jnp.argmax(policy, -1), jnp.repeat(theirs, 2))
        after = jax.vmap(connect_four.play)(boards, moves)
        won = ~ended & connect_four.lost(after)
        result = jnp.where(won, jnp.where(ours, 1.0, -1.0), result)
        said = Said(boards.own, boards.other, moves, value, policy, ~ended)
        # A finished game keeps its last board while the others go on.
        boards = jax.tree.map(lambda old, new: jnp.where(ended[:, None, None], old, new), boards, after)
        return (boards, ended | connect_four.over(boards), result), said

    (_, _, result), said = jax.lax.scan(connect_four.until(lambda carry: carry[1].all(), turn), start, jnp.arange(MOST))
    return Played(said, result)


def _half(games: jax.Array, odd: jax.Array) -> jax.Array:
    """Return the games of even number (odd = 0) or of odd number (odd = 1)."""
    return games.reshape(-1, 2, *games.shape[1:])[:, odd]


def decided(network: Network, boards, searched: bool, simulations: int) -> tuple[jax.Array, jax.Array]:
    """Return (policy (G, 7), value (G,)) of the model on boards.

    With search, the policy is the share of visits. Without search, it is the network's softmax over
    legal moves.
    """
    if searched:
        found = search(network, boards, simulations)
        return found.visits / jnp.maximum(found.visits.sum(-1, keepdims=True), 1), found.value
    logits, values = network(boards)
    # -1e9 instead of -inf keeps the softmax finite on a full board, which has no legal move.
    return jax.nn.softmax(jnp.where(connect_four.legal(boards), logits.astype(jnp.float32), -1e9)), values


class Matches:
    """The validation batches of a run: each batch is one match that the current weights play.

    A row is one position of one game, with the search's policy there and the result of the game.
    Without search there is no policy to compare with, so the row's weight is 0 and only the result
    counts.
    """

    def __init__(self, config: Any, mesh: Mesh):
        self.rows = config.data.open("validation")
        self.batch_size = config.eval.batch_size or config.train.batch_size
        if self.batch_size % 2:
            option = "eval" if config.eval.batch_size else "train"
            raise ValueError(
                f"{option}.batch_size = {self.batch_size}: the model begins half of the games; give an even number"
            )
        self._seed = config.train.seed
        self._place = Placement(mesh, config.parallel.rules, self.batch_size, config.data.row())
        self._play = {}
        for name, (opponent, searched) in PAIRINGS.items():
            args = opponent, searched, self.batch_size, config.data.eval_simulations
            self._play[name] = with_network(config, mesh, lambda network, key, args=args: match(network, key, *args))

    def __len__(self) -> int:
        return len(PAIRINGS)

    def made_by(self, weights: params.Tree) -> Iterator[Batch]:
        """Yield one batch per match, played by these weights."""
        for number, name in enumerate(PAIRINGS):
            played = jax.tree.map(np.asarray, self._play[name](weights, self._key(name)))
            yield self._place(self._batch(number, PAIRINGS[name][1], played))

    def _batch(self, number: int, searched: bool, played: Played) -> dict[str, np.ndarray]:
        games, said = np.arange(self.batch_size), played.said
        # Each game gives one position in which the model is to move. The positions spread over the
        # length of games.
        turns = (said.running.sum(0) - games % 2 + 1) // 2
        at = games // 2 * 7 % turns * 2 + games % 2
        own, other = said.own[at, games], said.other[at, games]
        legal = ~(own | other)[:, 0]
        return {
            "board": np.stack([own, other], -1).astype(np.float32),
            "search_policy": said.policy[at, games].astype(np.float32),
            "outcome": played.result.astype(np.float32),
            "legal": legal.astype(np.float32),
            "weights": np.full(self.batch_size, float(searched), np.float32),
            "won": (played.result > 0).astype(np.float32),
            "pairing": np.full(self.batch_size, number, np.int32),
        }

    def shown(self, weights: params.Tree) -> list[dict[str, Any]]:
        """Return the first games against minimax.

        Each is {"moves": columns, "turns": the numbers of the model's moves, from 1, "values": the
        model's values before those moves, "first": whether the model began, "result": 1, 0 or -1}.
        """
        played = jax.tree.map(np.asarray, self._play["win_minimax"](weights, self._key("win_minimax")))
        found = []
        for game in range(min(SHOWN, self.batch_size)):
            moves = played.said.moves[played.said.running[:, game], game].astype(int).tolist()
            at = np.arange(game % 2, len(moves), 2)
            turns, values = (at + 1).tolist(), played.said.values[at, game].tolist()
            one = {"moves": moves, "turns": turns, "values": values, "first": game % 2 == 0}
            found.append(one | {"result": float(played.result[game])})
        return found

    def _key(self, name: str) -> jax.Array:
        # The key depends on no step, so two evaluations of a run differ by the weights alone.
        return jax.random.fold_in(jax.random.key(self._seed), list(PAIRINGS).index(name))
