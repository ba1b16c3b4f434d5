"""Drops records that repeat an earlier one: equal texts, similar texts, or conflicting labels."""

import dataclasses
import hashlib
import json

import numpy as np

from bigmodel_jax.core.ranges import Count, CountOrZero, ProperShare, Seed
from bigmodel_jax.data.cleaning.minhash_index import MinHashIndex, band_hashes
from bigmodel_jax.data.cleaning.step import Record, Shared, package, text_of

DIGEST = 16  # bytes of a text's hash
SHOWN = 100  # characters of a text that a data card may show for a near duplicate
REMEMBERED = 10_000  # the number of texts whose beginnings are kept for the card: about a megabyte


def digest(text: str) -> bytes:
    """Return a hash of a text, which does not depend on the whitespace at its ends or on the amount
    of whitespace between words.
    """
    # JSON may contain half of a surrogate pair, which plain UTF-8 refuses to encode.
    return hashlib.blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=DIGEST).digest()


@dataclasses.dataclass(frozen=True)
class ExactDuplicates(Shared):
    """Keeps the first of all records with the same text."""

    field: str = "text"
    "the record's field with the text"

    def key(self, record):
        return digest(text_of(record, self.field))

    def group(self, key):
        return key

    def index(self):
        return _Texts()


class _Texts:
    """The texts that stayed, as hashes."""

    def __init__(self):
        self.known: set[bytes] = set()

    def ask(self, key: bytes) -> str:
        if key in self.known:
            return "exact duplicate"
        self.known.add(key)
        return ""


@dataclasses.dataclass(frozen=True)
class LabelAgreement(Shared):
    """Keeps the label of a text's first record, and drops later records with another label."""

    field: str = "text"
    "the record's field with the text"
    label_field: str = "label"
    "the record's field with the label"

    def key(self, record):
        if self.label_field not in record:
            raise ValueError(f"no field {self.label_field!r}")
        return digest(text_of(record, self.field)) + json.dumps(record[self.label_field], default=str).encode()

    def group(self, key):
        return key[:DIGEST]

    def index(self):
        return _Labels()


class _Labels:
    """The first label of each text."""

    def __init__(self):
        self.known: dict[bytes, bytes] = {}

    def ask(self, key: bytes) -> str:
        text, label = key[:DIGEST], key[DIGEST:]
        first = self.known.setdefault(text, label)
        return "" if first == label else f"labels disagree: {label.decode()}, {first.decode()} before"


# ---------------------------------------------------------------- nearly equal


@dataclasses.dataclass(frozen=True)
class NearDuplicates(Shared):
    """Keeps the first of several records whose word n-grams are nearly the same set, by MinHash.

    Sources: Broder 1997; arXiv:2107.06499. Two texts are compared where all minima of one band are
    equal. A band has `permutations / bands` minima. They are duplicates where the estimated Jaccard
    similarity, the share of equal minima, reaches `threshold`. A text of fewer than `words` words
    counts as one n-gram. With 16 bands, a record that stays takes 300 to 500 bytes of memory.
    """

    packages = ("rensa",)

    field: str = "text"
    "the record's field with the text"
    threshold: ProperShare = 0.8
    "the least Jaccard similarity of near duplicates"
    words: Count = 5
    "words of an n-gram"
    permutations: Count = 128
    "minima of a signature"
    bands: CountOrZero = 0
    """0: the fewest that find 999 of 1,000 pairs whose similarity is half-way from the threshold to
    1"""
    seed: Seed = 0
    "seeds the hash functions"

    def __post_init__(self):
        if self.bands and self.permutations % self.bands:
            raise ValueError(f"bands = {self.bands}; it must divide permutations = {self.permutations}, or be 0")

    def num_bands(self) -> int:
        """Return `bands`, or the fewest that suffice for the threshold.

        Where no number suffices, every band has one minimum.
        """
        alike, n = (1 + self.threshold) / 2, self.permutations
        # A band of r minima agrees with probability alike ** r. So all b bands of a pair disagree
        # with
        divisors = (b for b in range(1, n) if n % b == 0 and (1 - alike ** (n // b)) ** b <= 0.001)
        return self.bands or next(divisors, n)

    def key(self, record: Record) -> bytes:
        text = text_of(record, self.field)
        words = text.lower().split()
        found = package("rensa", self).RMinHash(num_perm=self.permutations, seed=self.seed)
        last = max(len(words) - self.words, 0) + 1
        found.update([" ".join(words[i : i + self.words]) for i in range(last)])
        # The lowest byte of each minimum is enough: unequal minima agree in it once in 256 cases.
        signature = np.array(found.digest(), np.uint32).astype(np.uint8)
        shown = text[:SHOWN].encode("utf-8", "replace")
        # The key carries all that the index needs, so that only the index runs in one process.
        return signature.tobytes() + band_hashes(signature[None], self.num_bands()).tobytes() + shown

    def index(self):
        return _NearTexts(self)


class _NearTexts:
    """The signatures that stayed, and the beginnings of the first texts."""

    def __init__(self, step: NearDuplicates):
        self.threshold = step.threshold
        self.permutations, self.bands = step.permutations, step.num_bands()
        self.beginnings: list[bytes] = []
        self.known = MinHashIndex(self.permutations, self.bands)

    def ask(self, key: bytes) -> str:
        signature = np.frombuffer(key, np.uint8, self.permutations)
        hashes = np.frombuffer(key, np.uint64, self.bands, self.permutations).tolist()
        alike, slots = self.known.find(signature, hashes)
        if alike >= self.threshold:
            return f"near duplicate: similarity {alike:.2f}, {self.threshold:g} or more, to a text before{self._beginning()}"
        self.known.add(signature, hashes, slots)
        # Both lists grow together, so a text has the same number in the index and here.
        if len(self.beginnings) < REMEMBERED:
            self.beginnings.append(key[self.permutations + 8 * self.bands :])
        return ""

    def _beginning(self) -> str:
        """Return ": " and the beginning of the most similar text, where it is remembered."""
        near = self.known.nearest
        return f": {self.beginnings[near].decode()}" if near < len(self.beginnings) else ""
