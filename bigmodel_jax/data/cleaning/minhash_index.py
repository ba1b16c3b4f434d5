"""An index that finds similar texts by MinHash signatures of one byte per minimum.

It takes 300 to 500 bytes of memory per text.
"""

import array

import numpy as np

BLOCK = 1 << 14  # signatures that are allocated at once
# The most texts that are compared in one band. If more texts agree in a band, as pages of one
# template do, the other bands must tell them apart.
LONGEST = 64
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / the golden ratio: the multiplier of Fibonacci hashing


def band_hashes(signatures: np.ndarray, bands: int) -> np.ndarray:
    """Return a hash per band, (texts, bands) uint64, of uint8 signatures (texts, permutations)."""
    # The factors are powers, as in a polynomial hash. With factors in arithmetic progression, the
    # hash of a band of 8 minima would have only some ten thousand different values.
    factors = np.cumprod(np.full(signatures.shape[1], GOLDEN))
    parts = (signatures * factors).reshape(len(signatures), bands, -1).sum(axis=2, dtype=np.uint64)
    # The low bits of a product depend on low bits alone, so the shift mixes high bits into them.
    return (parts ^ (parts >> np.uint64(29))) * GOLDEN


class MinHashIndex:
    """Signatures (permutations,) uint8, cut into `bands` of equal length.

    Signatures that agree in a whole band are compared in full. One byte per minimum is enough
    (b-bit minwise hashing, Li and König, arXiv:0910.3349). Unequal minima agree in this byte once
    in 256 cases, and `_alike` corrects for that. Each band is a hash table of text numbers with
    linear probing. One byte of the hash is stored as a tag.
    """

    def __init__(self, permutations: int, bands: int):
        self.number, self.nearest = 0, -1
        self._bands, self._permutations = bands, permutations
        self._blocks: list[np.ndarray] = []
        self._new_tables(12)

    def _new_tables(self, bits: int) -> None:
        """Make empty tables of 2**bits slots. A slot holds 0, or the number of a text plus 1.

        They are plain Python arrays, because single elements are read, for which NumPy is slow.
        """
        self._bits, self._mask = bits, (1 << bits) - 1
        self._tables = [array.array("I", bytes(4 << bits)) for _ in range(self._bands)]
        self._tags = [bytearray(1 << bits) for _ in range(self._bands)]

    def find(self, signature: np.ndarray, hashes: list[int]) -> tuple[float, list[int]]:
        """Return (similarity of the most similar text, the slots where `add` would put this one).

        The similarity is the estimated Jaccard similarity, and 0.0 where no text agrees in a band.
        The attribute `nearest` is then the number of that text.
        """
        slots, candidates, shift, mask = [], set(), 64 - self._bits, self._mask
        for table, tags, value in zip(self._tables, self._tags, hashes, strict=True):
            # The slot and the tag come from different bits, so the tag tells apart texts of one
            # slot.
            slot, tag = value >> shift, value & 255
            for _ in range(LONGEST):
                text = table[slot]
                if not text:
                    break
                if tags[slot] == tag:
                    candidates.add(text - 1)
                slot = (slot + 1) & mask
            else:
                slot = -1  # no free slot in this band
            slots.append(slot)
        return self._alike(signature, sorted(candidates)) if candidates else 0.0, slots

    def add(self, signature: np.ndarray, hashes: list[int], slots: list[int]) -> None:
        """Keep a signature. `slots` is the value that `find` has just returned for it."""
        # Signatures are stored in blocks: growing one array would copy all of them.
        block, row = divmod(self.number, BLOCK)
        if block == len(self._blocks):
            self._blocks.append(np.empty((BLOCK, self._permutations), np.uint8))
        self._blocks[block][row] = signature
        self.number += 1
        for band, slot in enumerate(slots):
            if slot >= 0:
                self._tables[band][slot], self._tags[band][slot] = self.number, hashes[band] & 255
        # A table is at most half full, so that probing stays short.
        if 2 * self.number > self._mask:
            self._grow()

    def _alike(self, signature: np.ndarray, texts: list[int]) -> float:
        found = (self._signatures(texts) == signature).mean(axis=1)
        # Unequal minima agree in their byte by chance once in 256 cases. This share is subtracted.
        self.nearest, equal = texts[int(found.argmax())], float(found.max())
        return max((equal - 1 / 256) / (1 - 1 / 256), 0.0)

    def _signatures(self, texts: list[int]) -> np.ndarray:
        return np.stack([self._blocks[i // BLOCK][i % BLOCK] for i in texts])

    def _grow(self) -> None:
        """Double the tables, and fill them with the texts that had a slot."""
        before = [np.array(table) for table in self._tables]
        self._new_tables(self._bits + 1)
        for first in range(0, self.number, BLOCK):
            block = self._blocks[first // BLOCK][: self.number - first]
            hashes = band_hashes(block, self._bands)
            for band, table in enumerate(before):
                texts = np.sort(table[(table > first) & (table <= first + BLOCK)])
                _place(self._tables[band], self._tags[band], texts, hashes[texts - first - 1, band], self._bits)


def _place(table: array.array, tags: bytearray, texts: np.ndarray, hashes: np.ndarray, bits: int) -> None:
    """Put texts (number + 1) into one band's table in bulk. The first of those that collide wins.

    The others move on to the next slot until all are placed.
    """
    table, tags = np.frombuffer(table, np.uint32), np.frombuffer(tags, np.uint8)
    slots = (hashes >> np.uint64(64 - bits)).astype(np.int64)
    while len(texts):
        # np.unique keeps the first text for each free slot; all others try again in the next slot.
        free = np.flatnonzero(table[slots] == 0)
        placed = free[np.unique(slots[free], return_index=True)[1]]
        table[slots[placed]], tags[slots[placed]] = texts[placed], hashes[placed] & np.uint64(255)
        left = np.ones(len(texts), bool)
        left[placed] = False
        texts, hashes, slots = texts[left], hashes[left], slots[left]
        slots = np.where(table[slots] > 0, (slots + 1) & ((1 << bits) - 1), slots)
