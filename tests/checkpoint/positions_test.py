"""A digest against one that is computed in plain integers, where two places are exchanged and sizes
have nothing in common."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.checkpoint.digest import digests

WORD = 2**32


def mixed(x: int) -> int:
    """The function fmix32 of MurmurHash3."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B % WORD
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % WORD
    return x ^ (x >> 16)


def by_hand(x: np.ndarray) -> int:
    """The sum of mix(bits ^ place * golden) over the flat array, where each place has its own
    number."""
    bits = np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}").ravel().tolist()
    return sum(mixed(b ^ (n * 0x9E3779B9 % WORD)) for n, b in enumerate(bits)) % WORD


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 5), (5, 1, 3, 2)])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "int16"])
def test_it_is_the_sum_in_plain_integers(shape, dtype):
    x = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    assert int(digests([jnp.asarray(x)])[0]) == by_hand(x)


def test_no_two_places_may_be_exchanged():
    """All values differ, so exchanging any two gives another array."""
    x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    before, after = int(digests([jnp.asarray(x)])[0]), []
    for i, j in itertools.combinations(range(12), 2):
        flat = x.ravel().copy()
        flat[[i, j]] = flat[[j, i]]
        after.append(flat.reshape(x.shape))
    found = np.asarray(digests([jnp.asarray(a) for a in after]))
    assert (found != before).all()


def test_rows_and_columns_are_not_each_others():
    """The same words in the same flat order have one digest, and a transposed array has another."""
    x = np.arange(15, dtype=np.float32).reshape(3, 5)
    flat, turned = (int(digests([jnp.asarray(a)])[0]) for a in (x.ravel(), x.T))
    assert int(digests([jnp.asarray(x)])[0]) == flat
    assert turned != flat
