"""Randomness as a function of position: it has no state, and is the same on every process."""

import numpy as np

ROUNDS = 6  # rounds of the Feistel network
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / the golden ratio, the increment of splitmix64


def start(seed: int) -> np.ndarray:
    """Return the seed as one well-mixed uint64 of shape (1,)."""
    return np.random.SeedSequence(seed).generate_state(1, np.uint64)


def mix(x: np.ndarray) -> np.ndarray:
    """Scramble uint64 values with the output function of splitmix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def noise(start: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Return one random uint64 per example number."""
    return mix(start + (examples.astype(np.uint64) + np.uint64(1)) * GOLDEN)


def order(start: np.ndarray, examples: np.ndarray, size: int) -> np.ndarray:
    """Return the row of each example in an endless shuffled order of `size` rows.

    Example e is in epoch e // size, and each epoch is another permutation. The permutation is a
    Feistel network over the next power of four, repeated until the result is below `size` (cycle
    walking; Black & Rogaway 2002, "Ciphers with arbitrary finite domains"). So any entry is
    computed without the others.
    """
    # ~start is used, because the permutations must not share random bits with the rows' noise.
    key = noise(~start, examples // size)
    # Both halves of the Feistel network have `half` bits.
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    x = (examples % size).astype(np.uint64)
    # Cycle walking: a value that lands at `size` or above is permuted again until it is below
    # `size`.
    outside = np.arange(len(x))
    while len(outside):
        left, right, k = x[outside] >> half, x[outside] & mask, key[outside]
        for r in range(1, ROUNDS + 1):
            left, right = right, left ^ (mix(k + right * GOLDEN + np.uint64(r)) & mask)
        x[outside] = left << half | right
        outside = outside[x[outside] >= size]
    return x.astype(np.int64)
