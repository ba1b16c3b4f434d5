"""Training batches from games that a model plays against itself.

All random choices are functions of (seed, step, weights). The recent games are saved with each
checkpoint, because the weights that played the older ones no longer exist.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bigmodel_jax.core import params
from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.core.ranges import Count, CountOrZero
from bigmodel_jax.data.base import DataConfig
from bigmodel_jax.data.experience import packed, unpacked
from bigmodel_jax.data.fields import Field
from bigmodel_jax.data.games import connect_four
from bigmodel_jax.data.games.connect_four import COLUMNS, MOST, ROWS
from bigmodel_jax.data.games.matches import Matches
from bigmodel_jax.data.games.network import with_network
from bigmodel_jax.data.games.search import Network, search
from bigmodel_jax.data.loader import Batch, Placement

Games = dict[str, np.ndarray]  # stones (N, 6, 7) int8: 1 own, 2 the opponent's; visits (N, 7) int32; outcome (N,) int8


@dataclasses.dataclass(frozen=True)
class SelfPlayData(DataConfig):
    """Connect Four played by the run's own weights with tree search.

    A batch holds board (B, 6, 7, 2), search_policy (B, 7), outcome (B,) in -1 .. 1 for the player
    to move, legal (B, 7) and weights (B,), all float32. An evaluation batch also holds won (B,)
    float32 and pairing (B,) int32, the number of the row's match.
    """

    endless: ClassVar[bool] = True
    compared: ClassVar = DataConfig.compared | dict.fromkeys(
        ("games", "simulations", "sampled_moves", "updates_per_game", "window"), "training"
    )

    games: Count = 64
    "games that are played at once in one round"
    simulations: Count = 32
    "simulations of the search before each move of self-play"
    eval_simulations: Count = 32
    "simulations of the search before each move of an evaluation"
    sampled_moves: CountOrZero = 10
    """the first moves of a game, drawn in proportion to their visits; later moves are the most
    visited"""
    updates_per_game: Count = 8
    "training steps between two rounds of games"
    window: Count = 12
    "how many recent rounds of games batches are drawn from"

    def open(self, split: str) -> "Openings":
        return Openings(self.games)

    def row(self) -> dict[str, Field]:
        moves = {name: Field((COLUMNS,)) for name in ("search_policy", "legal")}
        return {
            "board": Field((ROWS, COLUMNS, 2)),
            **moves,
            "outcome": Field(()),
            "weights": Field(()),
            "won": Field((), evaluation=True),
            "pairing": Field((), "int32", evaluation=True),
        }

    def requirements(self) -> dict:
        return {"board_shape": (ROWS, COLUMNS, 2), "num_moves": COLUMNS}

    def experience(self, config: Any, mesh: Mesh) -> "SelfPlayGames":
        return SelfPlayGames(config, mesh)

    def held_out(self, config: Any, mesh: Mesh) -> Matches:
        return Matches(config, mesh)


@dataclasses.dataclass(frozen=True)
class Openings:
    """The empty boards from which a round of games starts, as rows before any game is played."""

    games: int

    def __len__(self) -> int:
        return self.games

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        num = len(indices)
        stones = {"stones": np.zeros((num, ROWS, COLUMNS), np.int8), "visits": np.ones((num, COLUMNS), np.int32)}
        return rows(stones | {"outcome": np.zeros(num, np.int8)})

    def counts(self) -> dict:
        return {"games of a round": self.games}


def played(network: Network, key: jax.Array, data: SelfPlayData) -> tuple[jax.Array, ...]:
    """Play games from the empty board to their ends.

    Returns (stones, visits, outcome, running), each (T, G, ...).
    """
    start = connect_four.empty((data.games,)), jnp.zeros(data.games, bool)

    def turn(carry, number):
        boards, ended = carry
        noise_key, move_key = jax.random.split(jax.random.fold_in(key, number))
        noise = jax.random.dirichlet(noise_key, jnp.ones(COLUMNS), (data.games,))
        found = search(network, boards, data.simulations, noise)
        visits = found.visits.astype(jnp.float32)
        # 1e-9 keeps the logarithm of an unvisited move finite.
        drawn = jax.random.categorical(move_key, jnp.log(visits + 1e-9))
        moves = jnp.where(number < data.sampled_moves, drawn, jnp.argmax(visits, -1))
        after = jax.vmap(connect_four.play)(boards, moves)
        won = ~ended & connect_four.lost(after)
        said = (boards.own + 2 * boards.other).astype(jnp.int8), found.visits, won, ~ended
        # A finished game keeps its last board while the others go on.
        boards = jax.tree.map(lambda old, new: jnp.where(ended[:, None, None], old, new), boards, after)
        return (boards, ended | connect_four.over(boards)), said

    _, (stones, visits, won, running) = jax.lax.scan(
        connect_four.until(lambda carry: carry[1].all(), turn), start, jnp.arange(MOST)
    )
    # The player who made the last move has won, and the players alternate. So positions at an even
    # distance from that move belong to the winner.
    numbers, last = jnp.arange(MOST)[:, None], jnp.argmax(won, 0)
    outcome = jnp.where(won.any(0), jnp.where((last - numbers) % 2 == 0, 1, -1), 0).astype(jnp.int8)
    return stones, visits, outcome, running


class SelfPlayGames:
    """An `Experience` whose batches are drawn from recent games of self-play.

    Every `updates_per_game` steps the current weights play a new round of games.
    """

    phase = "rollout"

    def __init__(self, config: Any, mesh: Mesh):
        if jax.process_count() > 1:
            raise ValueError(f"data: SelfPlayData plays in one process, and this run has {jax.process_count()}")
        self._data, self._seed, self._size = config.data, config.train.seed, config.train.batch_size
        self.rows = config.data.open("train")
        self._place = Placement(mesh, config.parallel.rules, self._size, config.data.row())
        self._play = with_network(config, mesh, lambda network, key: played(network, key, config.data))
        self._step, self._rounds, self._sums, self._constants = 0, {}, {}, {}

    def enter(self, run_dir: Path, constants: params.Tree) -> None:
        self._constants = constants

    def prefetch(self) -> None:
        """Do nothing, because nothing can be prepared without the weights."""

    def wait(self, seconds: float) -> bool:
        """Return False where the next step needs a new round of games.

        A round can begin only when the previous step has finished its weights.
        """
        if self._number() in self._rounds:
            return True
        time.sleep(seconds)
        return False

    def _number(self) -> int:
        """Return the number of the latest round that the next step trains on."""
        return self._step // self._data.updates_per_game

    def next(self, state: Any) -> Batch:
        """Return the next batch, and play a new round of games before it where one is due."""
        number = self._number()
        if number not in self._rounds:
            self._rounds[number] = self._round(number, params.merge(state.params, state.frozen, self._constants))
            self._rounds = {n: self._rounds[n] for n in self._window(number)}  # older games are never drawn again
        batch = self._place(self._drawn(number))
        self._step += 1
        return batch

    def _round(self, number: int, weights: params.Tree) -> Games:
        """Play one round of games, and measure it."""
        key = jax.random.fold_in(jax.random.key(self._seed), number)
        began = time.perf_counter()
        stones, visits, outcome, running = (np.asarray(x) for x in self._play(weights, key))
        seconds, lengths = time.perf_counter() - began, running.sum(0)
        # Position 0 belongs to the player who begins, so its outcome is that player's.
        counts = {"rollout_seconds": seconds, "game_length": lengths.mean(), "draws": (outcome[0] == 0).mean()}
        counts["first_wins"] = (outcome[0] == 1).mean()
        self._sums = {name: Mean(np.float32(value), np.float32(1)) for name, value in counts.items()}
        return {"stones": stones[running], "visits": visits[running], "outcome": outcome[running]}

    def _window(self, number: int) -> list[int]:
        """Return the rounds from which batches are drawn once round `number` is played."""
        return [n for n in range(max(0, number - self._data.window + 1), number + 1) if n in self._rounds]

    def _drawn(self, number: int) -> dict[str, np.ndarray]:
        """Draw positions from the window with equal probability, and mirror half of them.

        The rules are symmetric in left and right.
        """
        chosen = [self._rounds[n] for n in self._window(number)]
        whole = {name: np.concatenate([one[name] for one in chosen]) for name in chosen[0]}
        # The draw depends on the step and on no generator's state, so a resumed run repeats it.
        draw = np.random.default_rng([self._seed, self._step])
        indices = draw.integers(len(whole["outcome"]), size=self._size)
        return rows({name: values[indices] for name, values in whole.items()}, draw.random(self._size) < 0.5)

    def measured(self) -> dict[str, Mean]:
        return self._sums

    # ---- where it stands

    def position(self) -> dict[str, Any]:
        """Return the position, with the games of the window that the next step draws from."""
        kept = self._window(self._number())
        sums = {name: float(mean.total) for name, mean in self._sums.items()}
        return {"self_play_step": self._step, "rounds": {str(n): packed(self._rounds[n]) for n in kept}, "sums": sums}

    def seek(self, step: int, position: dict[str, Any] | None = None) -> None:
        self._step = step if position is None else int(position["self_play_step"])
        if position is None and step:
            raise ValueError(
                f"data: SelfPlayData cannot go on at step {step} without the games that its checkpoint holds"
            )
        saved = position["rounds"] if position else {}
        here = {n: games for n, games in self._rounds.items() if n == self._number() and not saved}
        self._rounds = here | {int(n): unpacked(text) for n, text in saved.items()}
        if position and position["sums"]:
            self._sums = {name: Mean(np.float32(x), np.float32(1)) for name, x in position["sums"].items()}


def rows(games: Games, mirrored: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of a batch; `mirrored` (N,) bool marks the positions to be mirrored."""
    stones, visits = games["stones"], games["visits"].astype(np.float32)
    if mirrored is not None:
        stones = np.where(mirrored[:, None, None], stones[:, :, ::-1], stones)
        visits = np.where(mirrored[:, None], visits[:, ::-1], visits)
    return {
        "board": np.stack([stones == 1, stones == 2], -1).astype(np.float32),
        "search_policy": visits / np.maximum(visits.sum(-1, keepdims=True), 1),
        "outcome": games["outcome"].astype(np.float32),
        "legal": (stones[:, 0] == 0).astype(np.float32),
        "weights": np.ones(len(stones), np.float32),
    }
