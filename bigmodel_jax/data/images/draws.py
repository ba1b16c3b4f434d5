"""Random numbers for one image, determined by 64 random bits and the same on every machine."""

import numpy as np

from bigmodel_jax.data import shuffle

MASK = (1 << 64) - 1
GOLDEN = int(shuffle.GOLDEN)


def mixed(x: int) -> int:
    """Apply `shuffle.mix` to one number."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


class Draws:
    """The generator splitmix64 (Steele et al. 2014) with the initial state `noise`."""

    def __init__(self, noise: int):
        self._state = int(noise)

    def bits(self) -> int:
        """Return 64 random bits."""
        self._state = (self._state + GOLDEN) & MASK
        return mixed(self._state)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a float from `low` to `high`, with 53 random bits."""
        return low + (high - low) * (self.bits() >> 11) * 2.0**-53

    def below(self, count: int) -> int:
        """Return a whole number 0 .. count - 1."""
        # The high 64 bits of the product are uniform but for a bias below count / 2**64 (Lemire,
        # arXiv:1805.10941).
        return self.bits() * count >> 64

    def chance(self, share: float) -> bool:
        """Return True in this share of all cases."""
        return self.uniform() < share

    def beta(self, alpha: float) -> float:
        """Return a sample of Beta(alpha, alpha)."""
        return float(np.random.Generator(np.random.Philox(self.bits())).beta(alpha, alpha))

    def octets(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return random uint8 values of this shape."""
        count = int(np.prod(shape))
        words = shuffle.noise(np.array([self.bits()], np.uint64), np.arange(-(-count // 8)))
        # Little-endian words give the same bytes on every machine.
        return words.astype("<u8").view(np.uint8)[:count].reshape(shape)
