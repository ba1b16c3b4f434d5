"""Matches of a model against fixed players: the evaluation of self-play, and a game that is shown.

Half of the games of a match are begun by the model. A draw counts as a game that is not won.
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

# The figure of each match: the opponent, and whether the model searches before it moves.
PAIRINGS = {
    "win_random": ("random", True),
    "win_minimax": ("minimax", True),
    "win_random_policy": ("random", False),
    "win_minimax_policy": ("minimax", False),
}


class Played(NamedTuple):
    """own, other (T, G, 6, 7), moves, values and running (T, G), policy (T, G, 7) of every move; result (G,) 1, 0 or -1
    for the model. value is the mover's as the model's search (or its network) sees it."""

    own: jax.Array
    other: jax.Array
    moves: jax.Array
    values: jax.Array
    policy: jax.Array
    running: jax.Array
    result: jax.Array


def match(network: Network, key: jax.Array, opponent: str, searched: bool, games: int, simulations: int) -> Played:
    """`games` games from the empty board; the model begins those of even number."""
    first = jnp.arange(games) % 2 == 0
    start = connect_four.empty((games,)), jnp.zeros(games, bool), jnp.zeros(games)

    def turn(carry, number):
        boards, ended, result = carry
        ours = first == (number % 2 == 0)
        policy, value = decided(network, boards, searched, simulations)
        theirs = players.OPPONENTS[opponent](jax.random.fold_in(key, number), boards)
        moves = jnp.where(ours, jnp.argmax(policy, -1), theirs)
        after = jax.vmap(connect_four.play)(boards, moves)
        won = ~ended & connect_four.lost(after)
        result = jnp.where(won, jnp.where(ours, 1.0, -1.0), result)
        said = boards.own, boards.other, moves, value, policy, ~ended
        boards = jax.tree.map(lambda old, new: jnp.where(ended[:, None, None], old, new), boards, after)
        return (boards, ended | connect_four.over(boards), result), said

    (_, _, result), said = jax.lax.scan(turn, start, jnp.arange(MOST))
    return Played(*said, result)


def decided(network: Network, boards, searched: bool, simulations: int) -> tuple[jax.Array, jax.Array]:
    """(policy (G, 7), value (G,)): the search's share of visits, or the network's own softmax over legal moves."""
    if searched:
        found = search(network, boards, simulations)
        return found.visits / jnp.maximum(found.visits.sum(-1, keepdims=True), 1), found.value
    logits, values = network(boards)
    return jax.nn.softmax(jnp.where(connect_four.legal(boards), logits.astype(jnp.float32), -1e9)), values


class Matches:
    """The validation batches of a run: one match a batch, as many games as a batch has rows, played by the weights.

    A row is one position of its game, with what the search said there and the game's end. Without search there is
    nothing to compare with: the row's weight is 0, and only the game's end counts.
    """

    def __init__(self, config: Any, mesh: Mesh):
        self.rows = config.data.open("validation")
        self.batch_size = config.eval.batch_size or config.train.batch_size
        self._seed = config.train.seed
        self._place = Placement(mesh, config.parallel.rules, self.batch_size, config.data.row())
        self._play = {}
        for name, (opponent, searched) in PAIRINGS.items():
            args = opponent, searched, self.batch_size, config.data.eval_simulations
            self._play[name] = with_network(config, mesh, lambda network, key, args=args: match(network, key, *args))

    def __len__(self) -> int:
        return len(PAIRINGS)

    def made_by(self, weights: params.Tree) -> Iterator[Batch]:
        for number, name in enumerate(PAIRINGS):
            key = jax.random.fold_in(jax.random.key(self._seed), number)
            played = jax.tree.map(np.asarray, self._play[name](weights, key))
            yield self._place(self._batch(number, PAIRINGS[name][1], played))

    def _batch(self, number: int, searched: bool, played: Played) -> dict[str, np.ndarray]:
        games = np.arange(self.batch_size)
        lengths = played.running.sum(0)
        at = games * 7 % lengths  # positions from all over the games
        turns = np.where((at + games) % 2 == 0, 1.0, -1.0)  # the model moves
        own, other = played.own[at, games], played.other[at, games]
        legal = ~(own | other)[:, 0]
        return {
            "board": np.stack([own, other], -1).astype(np.float32),
            "search_policy": np.where(legal, played.policy[at, games], 0).astype(np.float32),
            "outcome": (played.result * turns).astype(np.float32),
            "legal": legal.astype(np.float32),
            "weights": np.full(self.batch_size, float(searched), np.float32),
            "won": (played.result > 0).astype(np.float32),
            "pairing": np.full(self.batch_size, number, np.int32),
        }


def shown(config: Any, mesh: Mesh, weights: params.Tree, games: int = 4) -> list[dict[str, Any]]:
    """Games against minimax: {"moves": columns, "values": of the model, before each move, "first", "result"}."""
    args = "minimax", True, games, config.data.eval_simulations
    play = with_network(config, mesh, lambda network, key: match(network, key, *args))
    played = jax.tree.map(np.asarray, play(weights, jax.random.key(config.train.seed + 1)))
    found = []
    for game in range(games):
        num = int(played.running[:, game].sum())
        signs = np.where((np.arange(num) + game) % 2 == 0, 1.0, -1.0)
        values = (played.values[:num, game] * signs).tolist()
        moves = played.moves[:num, game].astype(int).tolist()
        found.append({"moves": moves, "values": values, "first": game % 2 == 0, "result": float(played.result[game])})
    return found
