"""Which of many texts are alike, by MinHash signatures of a byte a minimum; 300 to 500 bytes of memory a text."""

import array

import numpy as np

BLOCK = 1 << 14  # signatures that are allocated at a time
LONGEST = (
    64  # texts that are looked at in a band: where more agree in it, as in pages of one template, other bands tell
)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def band_hashes(signatures: np.ndarray, bands: int) -> np.ndarray:
    """(texts, bands) uint64 of signatures (texts, permutations) uint8."""
    # Powers, as a polynomial's: factors in arithmetic progression would leave a band of 8 some ten thousand values.
    factors = np.cumprod(np.full(signatures.shape[1], GOLDEN))
    parts = (signatures * factors).reshape(len(signatures), bands, -1).sum(axis=2, dtype=np.uint64)
    return (parts ^ (parts >> np.uint64(29))) * GOLDEN


class MinHashIndex:
    """Signatures (permutations,) uint8, in `bands` of equal length; those that agree in a band are compared whole.

    A byte of a minimum is enough (b-bit minwise hashing, Li and König, arXiv:0910.3349): unequal minima agree in it once in
    256, which `_alike` takes off. Each band is a hash table of the numbers of texts, with linear probing and a byte of the
    hash as a tag.
    """

    def __init__(self, permutations: int, bands: int):
        self.number, self.nearest = 0, -1
        self._bands, self._permutations = bands, permutations
        self._blocks: list[np.ndarray] = []
        self._new_tables(12)

    def _new_tables(self, bits: int) -> None:
        """Empty ones of 2**bits slots. Number + 1 of a text; 0: empty. Plain arrays: single elements are read."""
        self._bits, self._mask = bits, (1 << bits) - 1
        self._tables = [array.array("I", bytes(4 << bits)) for _ in range(self._bands)]
        self._tags = [bytearray(1 << bits) for _ in range(self._bands)]

    def find(self, signature: np.ndarray, hashes: list[int]) -> tuple[float, list[int]]:
        """(the estimated Jaccard similarity of the most alike text, 0 where there is none; where `add` would put this one).

        `nearest` is then that text's number.
        """
        slots, candidates, shift, mask = [], set(), 64 - self._bits, self._mask
        for table, tags, value in zip(self._tables, self._tags, hashes, strict=True):
            slot, tag = value >> shift, value & 255
            for _ in range(LONGEST):
                text = table[slot]
                if not text:
                    break
                if tags[slot] == tag:
                    candidates.add(text - 1)
                slot = (slot + 1) & mask
            else:
                slot = -1  # no place in this band
            slots.append(slot)
        return self._alike(signature, sorted(candidates)) if candidates else 0.0, slots

    def add(self, signature: np.ndarray, hashes: list[int], slots: list[int]) -> None:
        """Keeps a signature; slots: what `find` has just said of it."""
        block, row = divmod(self.number, BLOCK)
        if block == len(self._blocks):
            self._blocks.append(np.empty((BLOCK, self._permutations), np.uint8))
        self._blocks[block][row] = signature
        self.number += 1
        for band, slot in enumerate(slots):
            if slot >= 0:
                self._tables[band][slot], self._tags[band][slot] = self.number, hashes[band] & 255
        if 2 * self.number > self._mask:
            self._grow()

    def _alike(self, signature: np.ndarray, texts: list[int]) -> float:
        found = (self._signatures(texts) == signature).mean(axis=1)
        self.nearest, equal = texts[int(found.argmax())], float(found.max())
        return max((equal - 1 / 256) / (1 - 1 / 256), 0.0)

    def _signatures(self, texts: list[int]) -> np.ndarray:
        return np.stack([self._blocks[i // BLOCK][i % BLOCK] for i in texts])

    def _grow(self) -> None:
        """Tables of twice the size, filled with the texts that had a place."""
        before = [np.array(table) for table in self._tables]
        self._new_tables(self._bits + 1)
        for first in range(0, self.number, BLOCK):
            block = self._blocks[first // BLOCK][: self.number - first]
            hashes = band_hashes(block, self._bands)
            for band, table in enumerate(before):
                texts = np.sort(table[(table > first) & (table <= first + BLOCK)])
                _place(self._tables[band], self._tags[band], texts, hashes[texts - first - 1, band], self._bits)


def _place(table: array.array, tags: bytearray, texts: np.ndarray, hashes: np.ndarray, bits: int) -> None:
    """Puts texts (number + 1) into one band's table, all at once: of those that meet in a slot the first gets it."""
    table, tags = np.frombuffer(table, np.uint32), np.frombuffer(tags, np.uint8)
    slots = (hashes >> np.uint64(64 - bits)).astype(np.int64)
    while len(texts):
        free = np.flatnonzero(table[slots] == 0)
        placed = free[np.unique(slots[free], return_index=True)[1]]
        table[slots[placed]], tags[slots[placed]] = texts[placed], hashes[placed] & np.uint64(255)
        left = np.ones(len(texts), bool)
        left[placed] = False
        texts, hashes, slots = texts[left], hashes[left], slots[left]
        slots = np.where(table[slots] > 0, (slots + 1) & ((1 << bits) - 1), slots)
