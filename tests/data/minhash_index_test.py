"""The index of MinHash signatures: against comparing every pair, through the growth of its tables, on pages of one template."""

import numpy as np

from bigmodel_jax.data.cleaning.minhash_index import LONGEST, MinHashIndex

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
        alike, slots = index.find(signature)
        index.add(signature, slots)
        found.append(alike)
    return found


def test_what_agrees_in_a_band_is_found_and_measured_through_growth():
    first = RNG.integers(0, 256, (9000, 128)).astype(np.uint8)
    index = MinHashIndex(128, 16)
    strangers = fill(index, first)
    assert max(strangers) < 0.2
    assert index._tables.shape[1] > 4096, "the tables have grown"
    for i in range(0, 9000, 300):
        near = noisy(first[i], 0.1)
        equal = (first == near).reshape(9000, 16, 8)
        candidates = equal.all(axis=2).any(axis=1)
        expected = (
            max((equal[candidates].mean(axis=(1, 2)).max() - 1 / 256) / (1 - 1 / 256), 0) if candidates.any() else 0
        )
        found, _ = index.find(near)
        assert found >= expected, "everything that agrees in a band is compared"
        assert not expected or found == expected
    assert index.find(first[0])[0] == 1


def test_growth_keeps_every_text_of_every_band():
    index, signatures = MinHashIndex(32, 4), RNG.integers(0, 3, (2500, 32)).astype(np.uint8)
    fill(index, signatures)
    assert index.number == 2500
    for table in index._tables:
        numbers = np.sort(table[table > 0])
        assert len(set(numbers)) == len(numbers)
        assert set(numbers) <= set(range(1, 2501))
    assert all(index.find(s)[0] == 1 for s in signatures)


def test_a_band_that_all_texts_share_costs_no_more_than_a_bound():
    """Three quarters of each signature are one template's."""
    index, template = MinHashIndex(128, 16), RNG.integers(0, 256, 128).astype(np.uint8)
    texts = RNG.integers(0, 256, (1000, 128)).astype(np.uint8)
    texts[:, :96] = template[:96]
    alike = fill(index, texts)
    assert alike[0] == 0
    assert 0.7 < min(alike[1:]) <= max(alike) < 0.8
    shared = index._tables[:12]
    assert (shared > 0).sum(axis=1).max() <= LONGEST
    assert ((index._tables[12:] > 0).sum(axis=1) == 1000).all()
    assert index.find(texts[999])[0] == 1, "the bands of its own tell"
