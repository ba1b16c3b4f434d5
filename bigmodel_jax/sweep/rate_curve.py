"""The arithmetic of a learning-rate range test: which rates, when it ends, and what its curve suggests.

The test trains a few steps, each at a higher rate than the one before, and looks at the loss (Smith, arXiv:1506.01186). The
two suggestions are those of fastai's `lr_find`: the rate of the steepest descent, and a tenth of the rate of the least loss.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter1d

FACTOR = 4.0  # a smoothed loss so many times the least one ends the test
SURE = 5.0  # a fall of so many standard deviations of the smoothed losses is none of chance
WIDTH = 0.03  # the standard deviation of the smoothing window, as a share of the test's steps


def rates(lowest: float, highest: float, steps: int) -> np.ndarray:
    """`steps` rates from lowest to highest, each the same factor above the one before, in the float32 of a step."""
    return np.geomspace(lowest, highest, steps).astype(np.float32)


class Watch:
    """Says when a test ends, from one loss after the other: an average over a twentieth of the steps, without lag at its
    start, is `FACTOR` times its least value."""

    def __init__(self, steps: int):
        self._keep, self._first = 1 - min(20 / steps, 0.5), steps // 10
        self._sum, self._count, self._seen, self._least = 0.0, 0.0, 0, math.inf

    def ends(self, loss: float) -> str:
        """Why the test ends with this loss; "" where it goes on."""
        if not math.isfinite(loss):
            return f"the loss was {loss}"
        self._sum, self._count = self._keep * self._sum + loss, self._keep * self._count + 1
        self._seen += 1
        now = self._sum / self._count
        self._least = min(self._least, now)
        # For losses below 0, too: three times the least one's distance from 0 above it.
        if self._seen <= self._first or now <= self._least + (FACTOR - 1) * abs(self._least):
            return ""
        return f"the smoothed loss was {FACTOR:g} times its least value"


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """smoothed: the losses without most of the batches' noise; steepest, tenth: the two suggested rates, None where the loss
    fell by less than its noise; at_end: whether the least loss is that of the highest rate tried."""

    smoothed: tuple[float, ...]
    steepest: float | None
    tenth: float | None
    at_end: bool


def suggest(tried: Sequence[float], losses: Sequence[float], steps: int) -> Suggestion:
    """What the losses at the rates `tried`, which are those of a test of so many steps or its first ones, suggest."""
    sigma = max(WIDTH * steps, 1.0)
    losses = np.asarray(losses, float)
    # Losses far above the first ones would reach through the window into the descent before them.
    first = losses[: max(len(losses) // 10, 2)]
    smoothed = gaussian_filter1d(np.minimum(losses, first.max() + np.ptp(first)), sigma, mode="nearest")
    least = int(np.argmin(smoothed))
    found = tuple(map(float, smoothed))
    if smoothed[: least + 1].max() - smoothed[least] <= SURE * _noise(losses[: least + 1], sigma):
        return Suggestion(found, None, None, False)
    slopes = np.gradient(smoothed, np.log(np.asarray(tried, float)))[: least + 1]
    steepest = float(tried[int(np.argmin(slopes))])
    return Suggestion(
        found, steepest, float(tried[least]) / 10, least >= len(tried) - 1 - sigma and len(tried) == steps
    )


def _noise(losses: np.ndarray, sigma: float) -> float:
    """The standard deviation of losses after smoothing, as neighbouring batches differ."""
    differences = np.diff(losses)
    return (
        float(np.std(differences)) / math.sqrt(2) / math.sqrt(2 * math.sqrt(math.pi) * sigma)
        if len(differences)
        else 0.0
    )
