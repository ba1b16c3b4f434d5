"""Mean and standard deviation of a training split, per image channel or per feature column."""

import dataclasses
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Channels:
    """Normalization of a batch: (value - mean) / spread.

    The value is uint8 / 255, or a float as it is. `mean` and `spread` (the standard deviation) have
    one number per channel or column; () leaves the values unchanged.
    """

    mean: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()

    def floats(self, values: np.ndarray) -> np.ndarray:
        """Return normalized float32 values of uint8 or float (..., channels), in a new array."""
        found = values.astype(np.float32)
        found /= np.float32(255 if values.dtype == np.uint8 else 1)
        if self.mean:
            # The broadcast is faster over whole lines of pixels than over 3 channels.
            lines = found.reshape(-1, found.shape[-2] * found.shape[-1]) if found.ndim > 2 else found
            lines -= self._line(self.mean, found, lines)
            lines /= self._line(self.spread, found, lines)
        return found

    def _line(self, numbers: tuple[float, ...], values: np.ndarray, lines: np.ndarray) -> np.ndarray:
        """Repeat the numbers of the channels along a line of pixels."""
        channels = np.broadcast_to(np.asarray(numbers, np.float32), values.shape[-1:])
        return np.tile(channels, lines.shape[-1] // values.shape[-1])

    def shown(self, values: np.ndarray) -> np.ndarray:
        """Undo the normalization, and clip to 0 .. 1 for display."""
        if self.mean:
            values = values * np.asarray(self.spread, np.float32) + np.asarray(self.mean, np.float32)
        return np.clip(values, 0, 1)

    def to_json(self) -> dict[str, list[float]]:
        return {"mean": list(self.mean), "scale": list(self.spread)}


def histogram(image: np.ndarray) -> np.ndarray:
    """Count each value in each channel of uint8 (..., channels): (channels, 256) int64."""
    flat = image.reshape(-1, image.shape[-1])
    return np.stack([np.bincount(flat[:, channel], minlength=256) for channel in range(flat.shape[1])])


def of_bytes(histograms: Iterable[np.ndarray]) -> Channels:
    """Return the exact mean and population standard deviation of value / 255 per channel.

    A constant channel has spread 1, so that the division leaves it finite.
    """
    counts = sum(histograms)
    values, number = np.arange(256), counts.sum(axis=1)
    # The histogram gives exact sums, independent of the order of the images.
    mean = counts @ values / number
    spread = np.sqrt(np.maximum(counts @ (values * values) / number - mean * mean, 0))
    return _channels(mean / 255, spread / 255)


def of_floats(parts: Iterable[np.ndarray]) -> Channels:
    """Return mean and population standard deviation per channel of float (..., channels) parts."""
    count, total, squares, first = 0, 0.0, 0.0, None
    for part in parts:
        values = part.reshape(-1, part.shape[-1]).astype(np.float64)
        # Without this shift, rounding at a large mean would hide a small spread.
        first = values[0].copy() if first is None else first
        values -= first
        count += len(values)
        total = total + values.sum(axis=0)
        squares = squares + np.square(values).sum(axis=0)
    mean = total / count
    return _channels(mean + first, np.sqrt(np.maximum(squares / count - mean * mean, 0)))


def _channels(mean: np.ndarray, spread: np.ndarray) -> Channels:
    return Channels(tuple(mean.tolist()), tuple(np.where(spread > 0, spread, 1.0).tolist()))


def chunks(values: np.ndarray, size: int = 256) -> Iterable[np.ndarray]:
    """Yield `size` rows of memory-mapped `values` at a time."""
    for begin in range(0, len(values), size):
        yield values[begin : begin + size]
