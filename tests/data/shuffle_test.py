import numpy as np
import pytest

from bigmodel_jax.data import shuffle


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 1000])
def test_every_epoch_is_a_permutation(size):
    rows = shuffle.order(shuffle.start(0), np.arange(3 * size), size).reshape(3, size)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(size), (3, 1)))


def test_epochs_and_seeds_differ():
    first, second = shuffle.order(shuffle.start(0), np.arange(2000), 1000).reshape(2, 1000)
    other = shuffle.order(shuffle.start(1), np.arange(1000), 1000)
    for a, b in ((first, second), (first, other), (second, other), (first, np.arange(1000))):
        assert np.mean(a == b) < 0.01
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.15


def test_all_orders_of_four_rows_are_about_equally_likely():
    orders = [tuple(shuffle.order(shuffle.start(seed), np.arange(4), 4)) for seed in range(2400)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert counts.min() > 50  # 100 expected, standard deviation 10


def test_any_part_can_be_computed_alone():
    whole = shuffle.order(shuffle.start(3), np.arange(50), 20)
    np.testing.assert_array_equal(whole[17:31], shuffle.order(shuffle.start(3), np.arange(17, 31), 20))
    noise = shuffle.noise(shuffle.start(3), np.arange(50))
    np.testing.assert_array_equal(noise[17:31], shuffle.noise(shuffle.start(3), np.arange(17, 31)))
    assert len(set(noise.tolist())) == 50
