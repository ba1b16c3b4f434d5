"""The arithmetic of a learning-rate range test: its rates, its end, and its suggestion.

The test trains a few steps, each at a higher rate than the one before, and watches the loss (Smith,
arXiv:1506.01186). The loss is lowest at the largest rate that still trains. Section 3.3 of that
paper puts the best rate of a run within a factor of two of it, and the lower end of a cycle at a
third or a quarter. A third is suggested, since too high a rate costs more than too low a one. The
rate of the steepest descent, which fastai and Lightning can suggest, falls with the number of
steps: a model that has trained longer at low rates has less left to learn at the higher ones.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter1d

FACTOR = 4.0  # the test ends when the smoothed loss is this many times its minimum
SURE = 5.0  # a fall by this many standard deviations of the smoothed loss is not chance
SHARE = 1 / 3  # of the rate of the lowest loss
WIDTH = 0.03  # standard deviation of the smoothing window, as a share of the steps


def rates(lowest: float, highest: float, steps: int) -> np.ndarray:
    """`steps` rates from lowest to highest in geometric progression, as float32."""
    return np.geomspace(lowest, highest, steps).astype(np.float32)


class Watch:
    """Decides when a test ends, from one loss at a time.

    It ends when a running average exceeds `FACTOR` times its minimum. The average spans about a
    twentieth of the steps and is corrected for bias at the start.
    """

    def __init__(self, steps: int):
        self._keep, self._first = 1 - min(20 / steps, 0.5), steps // 10
        self._sum, self._count, self._seen, self._least = 0.0, 0.0, 0, math.inf

    def ends(self, loss: float) -> str:
        """Why the test ends with this loss; "" if it goes on."""
        if not math.isfinite(loss):
            return f"the loss was {loss}"
        self._sum, self._count = self._keep * self._sum + loss, self._keep * self._count + 1
        self._seen += 1
        now = self._sum / self._count
        self._least = min(self._least, now)
        # The bound uses the absolute value, so that it also works for losses below 0.
        if self._seen <= self._first or now <= self._least + (FACTOR - 1) * abs(self._least):
            return ""
        return f"the smoothed loss was {FACTOR:g} times its least value"


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """The result of a range test.

    smoothed: the losses after smoothing. lowest, steepest: the rates at which the smoothed loss is
    lowest, and falls most steeply; rate: the suggested one; None if the loss fell by no more than
    its noise. at_end: whether the lowest loss is at the highest rate tried.
    """

    smoothed: tuple[float, ...]
    rate: float | None
    lowest: float | None
    steepest: float | None
    at_end: bool


def suggest(tried: Sequence[float], losses: Sequence[float], steps: int) -> Suggestion:
    """Suggest a rate from the losses at the rates `tried`.

    steps: the planned number of steps. `tried` may be shorter, if the test ended early.
    """
    sigma = max(WIDTH * steps, 1.0)
    losses = np.asarray(losses, float)
    # Losses far above the first ones are clipped. Otherwise smoothing would spread them into the
    # descent before them.
    first = losses[: max(len(losses) // 10, 2)]
    smoothed = gaussian_filter1d(np.minimum(losses, first.max() + np.ptp(first)), sigma, mode="nearest")
    least = int(np.argmin(smoothed))
    found = tuple(map(float, smoothed))
    if smoothed[: least + 1].max() - smoothed[least] <= SURE * _noise(losses[: least + 1], sigma):
        return Suggestion(found, None, None, None, False)
    slopes = np.gradient(smoothed, np.log(np.asarray(tried, float)))[: least + 1]
    lowest, steepest = float(tried[least]), float(tried[int(np.argmin(slopes))])
    at_end = least >= len(tried) - 1 - sigma and len(tried) == steps
    return Suggestion(found, SHARE * lowest, lowest, steepest, at_end)


def _noise(losses: np.ndarray, sigma: float) -> float:
    """Standard deviation of the smoothed losses, estimated from differences of neighbours."""
    # Differences of neighbours have twice the losses' variance. Gaussian smoothing divides it by 2
    # sqrt(pi) sigma.
    differences = np.diff(losses)
    return (
        float(np.std(differences)) / math.sqrt(2) / math.sqrt(2 * math.sqrt(math.pi) * sigma)
        if len(differences)
        else 0.0
    )
