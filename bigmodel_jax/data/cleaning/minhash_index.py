"""Which of many texts are alike, by MinHash signatures of a byte a minimum; about 270 bytes of memory a text."""

import numpy as np

BLOCK = 1 << 14  # signatures that are allocated at a time
LONGEST = (
    64  # texts that are looked at in a band: where more agree in it, as in pages of one template, other bands tell
)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class MinHashIndex:
    """Signatures (permutations,) uint8, in `bands` of equal length; those that agree in a band are compared whole.

    A byte of a minimum is enough (b-bit minwise hashing, Li and König, arXiv:0910.3349): unequal minima agree in it once in
    256, which `alike` takes off. Each band is a hash table of the numbers of texts, with linear probing; what probing finds
    by accident is told apart by its signature, so no table holds keys.
    """

    def __init__(self, permutations: int, bands: int):
        self.number = 0
        self._bands, self._permutations = np.arange(bands), permutations
        self._factors = GOLDEN * (2 * np.arange(permutations, dtype=np.uint64) + np.uint64(1))
        self._blocks: list[np.ndarray] = []
        self._tables = np.zeros((bands, 1 << 12), np.uint32)  # number + 1 of a text; 0: empty

    def find(self, signature: np.ndarray) -> tuple[float, np.ndarray]:
        """(the estimated Jaccard similarity of the most alike text, 0 where there is none; where `add` would put this one)."""
        tables, mask = self._tables, self._tables.shape[1] - 1
        slots, found = self._slots(signature[None])[0], []
        for _ in range(LONGEST):
            texts = tables[self._bands, slots]
            if not texts.any():
                break
            found.append(texts)
            slots = np.where(texts > 0, (slots + 1) & mask, slots)
        else:
            slots = np.where(texts > 0, -1, slots)  # no place in this band
        if not found:
            return 0.0, slots
        candidates = np.unique(np.concatenate(found))
        return self._alike(signature, candidates[candidates > 0] - 1), slots

    def add(self, signature: np.ndarray, slots: np.ndarray) -> None:
        """Keeps a signature; slots: what `find` has just said of it."""
        block, row = divmod(self.number, BLOCK)
        if block == len(self._blocks):
            self._blocks.append(np.empty((BLOCK, self._permutations), np.uint8))
        self._blocks[block][row] = signature
        self.number += 1
        there = slots >= 0
        self._tables[self._bands[there], slots[there]] = self.number
        if 2 * self.number > self._tables.shape[1]:
            self._grow()

    def _alike(self, signature: np.ndarray, texts: np.ndarray) -> float:
        others = np.stack([self._blocks[i // BLOCK][i % BLOCK] for i in texts.tolist()])
        equal = float((others == signature).mean(axis=1).max())
        return max((equal - 1 / 256) / (1 - 1 / 256), 0.0)

    def _slots(self, signatures: np.ndarray) -> np.ndarray:
        """(texts, bands): where probing begins."""
        parts = (signatures * self._factors).reshape(len(signatures), len(self._bands), -1).sum(axis=2, dtype=np.uint64)
        mixed = (parts ^ (parts >> np.uint64(29))) * GOLDEN
        return (mixed >> np.uint64(64 - (self._tables.shape[1] - 1).bit_length())).astype(np.int64)

    def _grow(self) -> None:
        """Tables of four times the size, filled with the texts in their order."""
        before = self._tables
        self._tables = np.zeros((len(before), 4 * before.shape[1]), np.uint32)
        for band, table in enumerate(before):
            texts = np.sort(table[table > 0])  # those that found no place in it stay out
            for first in range(0, len(texts), BLOCK):
                some = texts[first : first + BLOCK]
                whole = np.stack([self._blocks[i // BLOCK][i % BLOCK] for i in (some - 1).tolist()])
                self._place(band, some, self._slots(whole)[:, band])

    def _place(self, band: int, texts: np.ndarray, slots: np.ndarray) -> None:
        """Puts texts into one band's table, all at once: of those that meet in a slot the first gets it."""
        table, mask = self._tables[band], self._tables.shape[1] - 1
        while len(texts):
            free = np.flatnonzero(table[slots] == 0)
            _, first = np.unique(slots[free], return_index=True)
            placed = free[first]
            table[slots[placed]] = texts[placed]
            left = np.ones(len(texts), bool)
            left[placed] = False
            texts, slots = texts[left], slots[left]
            slots = np.where(table[slots] > 0, (slots + 1) & mask, slots)
