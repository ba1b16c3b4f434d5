"""Noise over time: every epoch hides, moves, orders and cuts a row otherwise, and every example has
noise of its own."""

import dataclasses

import jax
import numpy as np
import pytest

from bigmodel_jax.core.sharding import ParallelConfig, Rules, make_mesh
from bigmodel_jax.data import loader, shuffle
from bigmodel_jax.data.images.image_rows import shift
from bigmodel_jax.data.loader import EvalBatches, Placement, Sampler
from bigmodel_jax.data.text import masking, permutation, span_corruption

SIZE, BATCH = 7, 4


@dataclasses.dataclass
class Numbers:
    """Rows that say which they are and what noise they were given."""

    size: int = SIZE

    def __len__(self) -> int:
        return self.size

    def batch(self, indices, noise):
        noise = np.zeros(len(indices), np.uint64) if noise is None else noise
        return {"row": np.asarray(indices), "noise": noise, "weights": np.ones(len(indices), np.float32)}


def epochs(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(row, noise) of every example of the first epochs, (num, SIZE)."""
    sampler = Sampler(Numbers(), BATCH, seed)
    batches = [sampler.local(n) for n in range(-(-num * SIZE // BATCH))]
    both = (np.concatenate([b[name] for b in batches])[: num * SIZE] for name in ("row", "noise"))
    return tuple(x.reshape(num, SIZE) for x in both)


def test_every_epoch_has_every_row_in_another_order_with_other_noise():
    rows, noise = epochs(20)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(SIZE), (20, 1)))
    assert len({tuple(r) for r in rows.tolist()}) > 15
    assert len(set(noise.ravel().tolist())) == noise.size
    assert not set(epochs(20, seed=1)[1].ravel().tolist()) & set(noise.ravel().tolist())


def test_noise_is_not_the_rows_own():
    """The noise that a row gets in one epoch reaches no row in another: it belongs to the
    example."""
    rows, noise = epochs(6)
    of_row = [noise[rows == row].tolist() for row in range(SIZE)]
    assert all(len(set(values)) == 6 for values in of_row)


def test_a_part_of_a_batch_has_its_rows_and_their_noise():
    sampler = Sampler(Numbers(), 8, 3)
    whole = sampler.local(5)
    for low, high in ((0, 3), (3, 8)):
        part = sampler.local(5, low, high)
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name][low:high])


def test_an_evaluation_has_no_noise_and_its_filling_no_weight():
    batches = EvalBatches(Numbers(), BATCH, make_mesh(ParallelConfig(), jax.devices()[:1]), Rules())
    assert len(batches) == 2
    first, last = (batches.local(n, 0, BATCH) for n in range(2))
    assert first["row"].tolist() == [0, 1, 2, 3]
    assert first["weights"].tolist() == [1, 1, 1, 1]
    assert last["row"].tolist() == [4, 5, 6, 6]
    assert last["weights"].tolist() == [1, 1, 1, 0]
    assert not first["noise"].any()
    exact = EvalBatches(Numbers(8), BATCH, make_mesh(ParallelConfig(), jax.devices()[:1]), Rules())
    assert len(exact) == 2
    assert exact.local(1, 0, BATCH)["weights"].all()


# ------------------------------------------------------------------------------- what noise decides

TOKENS = np.random.default_rng(0).integers(1, 500, (64, 32)).astype(np.int32)
ALLOWED = np.ones(TOKENS.shape, bool)


def hidden(noise):
    return masking.hide(TOKENS, ALLOWED, noise, 0.3, 500, 500)[0]


def ordered(noise):
    return permutation.permute(ALLOWED, noise, 8)[0]


def cut(noise):
    rngs = [np.random.default_rng(n) for n in noise]
    return np.stack([span_corruption.noise_mask(rng, 32, 0.25, 2.0) for rng in rngs])


def moved(noise):
    return shift(TOKENS.reshape(64, 8, 4, 1), noise, 2)


@pytest.mark.parametrize("kind", [hidden, ordered, cut, moved], ids=lambda f: f.__name__)
def test_what_noise_decides_differs_by_row_and_epoch(kind):
    first, second = (kind(shuffle.noise(shuffle.start(0), np.arange(64) + 64 * epoch)) for epoch in (0, 1))
    same = [(a == b).all() for a, b in zip(first, second, strict=True)]
    assert np.mean(same) < 0.2
    np.testing.assert_array_equal(kind(shuffle.noise(shuffle.start(0), np.arange(64))), first)


def test_rows_of_one_epoch_are_hidden_in_other_places():
    noise = shuffle.noise(shuffle.start(0), np.arange(64))
    chosen = masking.hide(np.tile(TOKENS[:1], (64, 1)), ALLOWED, noise, 0.3, 500, 500)[1]
    assert len({row.tobytes() for row in chosen}) == 64
    assert len({column.tobytes() for column in chosen.T}) == 32


def test_a_shift_moves_down_and_right_by_its_two_digits():
    """Noise n of a shift by up to 1 takes the part of the framed image that begins n % 3 down and n
    // 3 to the right."""
    image = np.arange(1, 7).reshape(1, 2, 3, 1)
    frame = np.pad(image[0, :, :, 0], 1)
    for number in range(9):
        right, down = divmod(number, 3)
        got = shift(image, np.array([number], np.uint64), 1)[0, :, :, 0]
        np.testing.assert_array_equal(got, frame[down : down + 2, right : right + 3])


# ------------------------------------------------------------------------------ places of a process


class Owned:
    """A stand-in for a sharding: of its devices this process has two, with rows 4 .. 8 of a
    batch."""

    def addressable_devices_indices_map(self, shape):
        assert shape == (12,)
        return {"second": (slice(6, 8),), "first": (slice(4, 6),)}


def test_a_process_makes_its_own_rows_and_puts_them_where_they_belong(monkeypatch):
    monkeypatch.setattr(loader.sharding, "batch_sharding", lambda mesh, rules, axes=(): Owned())
    place = Placement(None, Rules(), 12)
    assert (place.low, place.high) == (4, 8)
    local = np.arange(4 * 3).reshape(4, 3) + 100
    seen = []

    def record(shape, target, shard):
        seen.append((shape, target))
        seen.extend(shard(index).tolist() for index in ((slice(4, 6), slice(None)), (slice(6, 8), slice(1, 3))))

    monkeypatch.setattr(jax, "make_array_from_callback", record)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    place({"x": local})
    assert seen[0][0] == (12, 3)
    assert seen[1:] == [[[100, 101, 102], [103, 104, 105]], [[107, 108], [110, 111]]]


def test_a_resumed_iterator_forgets_what_it_had_prepared():
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    iterator = loader.BatchIterator(Sampler(Numbers(), BATCH, 0), mesh, Rules())
    first = [np.asarray(next(iterator)["row"]).tolist() for _ in range(3)]
    iterator.prefetch()
    assert iterator.position() == {"next_batch": 3}
    iterator.seek(7, {"next_batch": 1})
    assert np.asarray(next(iterator)["row"]).tolist() == first[1]
    assert iterator.position() == {"next_batch": 2}
    iterator.seek(2)
    assert np.asarray(next(iterator)["row"]).tolist() == first[2]
