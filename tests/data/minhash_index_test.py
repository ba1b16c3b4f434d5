"""The index of MinHash signatures: against comparing every pair, through the growth of its tables,
on pages of one template."""

import numpy as np

from bigmodel_jax.data.cleaning.minhash_index import LONGEST, MinHashIndex, band_hashes

RNG = np.random.default_rng(0)


def noisy(signature, share):
    """The signature with about this share of its bytes drawn anew."""
    return np.where(RNG.random(signature.shape) < share, RNG.integers(0, 256, signature.shape), signature).astype(
        np.uint8
    )


def fill(index, signatures):
    """How alike each was to those before it."""
    found = []
    for signature in signatures:
        hashes = band_hashes(signature[None], index._bands)[0].tolist()
        alike, slots = index.find(signature, hashes)
        index.add(signature, hashes, slots)
        found.append(alike)
    return found


def alike(index, signature):
    return index.find(signature, band_hashes(signature[None], index._bands)[0].tolist())[0]


def test_what_agrees_in_a_band_is_found_and_measured_through_growth():
    first = RNG.integers(0, 256, (9000, 128)).astype(np.uint8)
    index = MinHashIndex(128, 16)
    strangers = fill(index, first)
    assert max(strangers) < 0.2
    assert len(index._tables[0]) > 4096, "the tables have grown"
    for i in range(0, 9000, 300):
        near = noisy(first[i], 0.1)
        equal = (first == near).reshape(9000, 16, 8)
        candidates = equal.all(axis=2).any(axis=1)
        expected = (
            max((equal[candidates].mean(axis=(1, 2)).max() - 1 / 256) / (1 - 1 / 256), 0) if candidates.any() else 0
        )
        found = alike(index, near)
        assert found >= expected, "everything that agrees in a band is compared"
        assert not expected or found == expected
    assert alike(index, first[0]) == 1


def test_growth_keeps_every_text_of_every_band():
    index, signatures = MinHashIndex(32, 4), RNG.integers(0, 3, (2500, 32)).astype(np.uint8)
    fill(index, signatures)
    assert index.number == 2500
    for table in index._tables:
        numbers = np.array(table)[np.array(table) > 0]
        assert len(set(numbers)) == len(numbers)
        assert set(numbers) <= set(range(1, 2501))
    assert all(alike(index, s) == 1 for s in signatures)


def test_a_band_that_all_texts_share_costs_no_more_than_a_bound():
    """Three quarters of each signature come from one template."""
    index, template = MinHashIndex(128, 16), RNG.integers(0, 256, 128).astype(np.uint8)
    texts = RNG.integers(0, 256, (1000, 128)).astype(np.uint8)
    texts[:, :96] = template[:96]
    found = fill(index, texts)
    assert found[0] == 0
    assert 0.7 < min(found[1:]) <= max(found) < 0.8
    used = (np.array(index._tables) > 0).sum(axis=1)
    assert used[:12].max() <= LONGEST
    assert (used[12:] == 1000).all()
    assert alike(index, texts[999]) == 1, "the bands of its own tell"


def test_bands_that_differ_have_hashes_that_differ_in_slot_and_in_tag():
    signatures = np.random.default_rng(0).integers(0, 256, (20_000, 128)).astype(np.uint8)
    for hashes in band_hashes(signatures, 16).T:
        assert len(np.unique(hashes)) == len(signatures)
        for part in (hashes >> np.uint64(56), hashes & np.uint64(255)):
            counts = np.bincount(part.astype(int), minlength=256)
            assert 30 < counts.min() <= counts.max() < 140  # 78 on average
