"""Draw games of Connect Four: the final board, and the model's value after each move.

The discs carry the moves' numbers.
"""

import io
from pathlib import Path
from typing import Any

from bigmodel_jax.core import files
from bigmodel_jax.data.games.connect_four import COLUMNS, ROWS

MODEL, OTHER = "#2a78d6", "#e0a100"
ENDS = {1.0: "won", 0.0: "drawn", -1.0: "lost"}


def write_games(path: Path, games: list[dict[str, Any]]) -> None:
    """Write a PNG with one column for each game.

    games: dicts with moves, first, result, turns and values (data/games/matches.py).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(games), 4.6), layout="constrained", facecolor="white")
    axes = figure.subplots(2, len(games), height_ratios=(2, 1), squeeze=False)
    for (board, values), game in zip(axes.T, games, strict=True):
        _board(board, game)
        values.plot(game["turns"], game["values"], color=MODEL, marker="o", markersize=3)
        values.locator_params(axis="x", integer=True)
        values.axhline(0, color="#999999", linewidth=0.6)
        # Values may reach 1. The extra keeps their markers whole.
        values.set(ylim=(-1.05, 1.05), xlabel="move")
    axes[1, 0].set_ylabel("value for the model")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    path.parent.mkdir(exist_ok=True)
    files.replace(path, out.getvalue())


def _board(axes: Any, game: dict[str, Any]) -> None:
    from matplotlib.patches import Circle

    heights = [0] * COLUMNS
    for number, column in enumerate(game["moves"]):
        # The list of moves does not say whose they are, but they alternate.
        ours = (number % 2 == 0) == game["first"]
        at = column, heights[column]
        axes.add_patch(Circle(at, 0.44, color=MODEL if ours else OTHER))
        axes.text(*at, str(number + 1), ha="center", va="center", fontsize=7, color="white" if ours else "black")
        heights[column] += 1
    who = "model (blue) begins" if game["first"] else "minimax (yellow) begins"
    axes.set(xlim=(-0.6, COLUMNS - 0.4), ylim=(-0.6, ROWS - 0.4), aspect="equal", xticks=[], yticks=[])
    axes.set_title(f"{who}: {ENDS[game['result']]}", fontsize=9)
