"""Draw what a speech recogniser hears: spectrograms, aligned characters, transcripts."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bigmodel_jax.report.plot_style import LIGHT

COLUMNS, INCHES = 2, (5.0, 2.5)  # recordings in a row; inches of one recording
MISHEARD, HEARD = "#c22f4f", "#16866a"


@dataclasses.dataclass(frozen=True)
class Hearing:
    """One recording and its transcripts.

    spectrogram: (T, F). seconds: its length. said: the true text. heard: the model's text.
    characters: (character, first second, last second) of the true text as the model aligns it. The
    list is empty if the text has more characters than the frames can hold.
    """

    spectrogram: np.ndarray
    seconds: float
    said: str
    heard: str
    characters: Sequence[tuple[str, float, float]] = ()


def write_hearings(path: Path, hearings: Sequence[Hearing]) -> None:
    """Write a PNG with two recordings per row, on white."""
    from matplotlib.figure import Figure

    rows = -(-len(hearings) // COLUMNS)
    figure = Figure(figsize=(COLUMNS * INCHES[0], rows * INCHES[1]), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(h_pad=0.12)  # a transcript stands nearer to its own picture
    axes = np.ravel(figure.subplots(rows, COLUMNS, squeeze=False))
    # The last row may have a place without a recording.
    for one, hearing in zip(axes, hearings, strict=False):
        _draw(one, hearing)
    for unused in axes[len(hearings) :]:
        unused.set_axis_off()
    figure.savefig(path, dpi=120)


def _draw(axes, one: Hearing) -> None:
    """The spectrogram, low frequencies at the bottom, and below it each character at its time."""
    bins = one.spectrogram.shape[1]
    axes.imshow(one.spectrogram.T, origin="lower", aspect="auto", extent=(0, one.seconds, 0, bins), cmap="magma")
    for character, start, end in one.characters:
        axes.axvline(start, color="white", linewidth=0.5, alpha=0.5)
        axes.text((start + end) / 2, -0.04 * bins, character, ha="center", va="top", fontsize=9, color=LIGHT.ink)
    axes.set_yticks([])
    axes.set_xticks(np.arange(0, one.seconds, 0.5))
    axes.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False, labelsize=7)
    axes.set_xlim(0, one.seconds)
    right = one.said == one.heard
    axes.set_title(f"said: {one.said or '(silence)'}", loc="left", fontsize=9, pad=14, color=LIGHT.ink)
    said = f"heard: {one.heard or '(nothing)'}"
    axes.set_xlabel(said, loc="left", fontsize=9, labelpad=16, color=HEARD if right else MISHEARD)


def table(hearings: Sequence[Hearing]) -> str:
    """One line per recording: the true text and the heard text, with a cross before a wrong one."""
    return "\n".join(
        f"{'✓' if one.said == one.heard else '✗'} {one.said or '(silence)'} → {one.heard or '(nothing)'}"
        for one in hearings
    )
