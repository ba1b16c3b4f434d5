"""A picture's random numbers: those of `shuffle`, evenly spread, a function of the bits alone."""

import numpy as np

from bigmodel_jax.data import shuffle
from bigmodel_jax.data.images.draws import Draws, mixed


def test_one_number_is_mixed_as_an_array_is():
    numbers = np.array([0, 1, 2**63, 2**64 - 1, 123456789], np.uint64)
    assert [mixed(int(n)) for n in numbers] == shuffle.mix(numbers).tolist()


def test_draws_are_the_bits_function_and_evenly_spread():
    assert [Draws(5).bits() for _ in range(2)] == [Draws(5).bits()] * 2
    draws = Draws(5)
    assert len({draws.bits() for _ in range(100)}) == 100
    values = np.array([draws.uniform(-1, 3) for _ in range(4000)])
    assert values.min() >= -1
    assert values.max() < 3
    np.testing.assert_allclose(np.histogram(values, 4, (-1, 3))[0], 1000, atol=120)
    counts = np.bincount([draws.below(3) for _ in range(3000)], minlength=3)
    np.testing.assert_allclose(counts, 1000, atol=120)


def test_beta_has_its_mean_and_variance():
    draws = np.array([Draws(noise).beta(0.4) for noise in range(2000)])
    np.testing.assert_allclose([draws.mean(), draws.var()], [0.5, 0.25 / 1.8], atol=0.02)


def test_octets_take_every_value():
    octets = Draws(3).octets((40, 41, 3))
    assert octets.shape == (40, 41, 3)
    assert octets.dtype == np.uint8
    assert len(np.unique(octets)) == 256
