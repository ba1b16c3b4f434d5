"""Records that were there before: equal texts, nearly equal ones, and equal texts under another label."""

import dataclasses
import hashlib
import json

import numpy as np

from bigmodel_jax.core.ranges import Count, ProperShare, Seed
from bigmodel_jax.data.cleaning.minhash_index import MinHashIndex, band_hashes
from bigmodel_jax.data.cleaning.step import Record, Shared, package, text_of

DIGEST = 16  # bytes of a text's hash
SHOWN = 100  # characters of a text that a data card may show beside its near duplicate
REMEMBERED = 10_000  # texts whose beginnings are kept for that: a megabyte


def digest(text: str) -> bytes:
    """A text's hash; blanks at its ends and how many there are between its words do not count."""
    return hashlib.blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=DIGEST).digest()


@dataclasses.dataclass(frozen=True)
class ExactDuplicates(Shared):
    """Keeps the first of all records with one text."""

    field: str = "text"

    def key(self, record):
        return digest(text_of(record, self.field))

    def index(self):
        return _Texts()


class _Texts:
    def __init__(self):
        self.known: set[bytes] = set()

    def ask(self, key: bytes) -> str:
        if key in self.known:
            return "exact duplicate"
        self.known.add(key)
        return ""


@dataclasses.dataclass(frozen=True)
class LabelAgreement(Shared):
    """Keeps a text's first label: drops a record whose text came with another label before."""

    field: str = "text"
    label_field: str = "label"

    def key(self, record):
        if self.label_field not in record:
            raise ValueError(f"no field {self.label_field!r}")
        return digest(text_of(record, self.field)) + json.dumps(record[self.label_field], default=str).encode()

    def index(self):
        return _Labels()


class _Labels:
    def __init__(self):
        self.known: dict[bytes, bytes] = {}

    def ask(self, key: bytes) -> str:
        text, label = key[:DIGEST], key[DIGEST:]
        first = self.known.setdefault(text, label)
        return "" if first == label else f"labels disagree: {label.decode()}, {first.decode()} before"


# ---------------------------------------------------------------- nearly equal


@dataclasses.dataclass(frozen=True)
class NearDuplicates(Shared):
    """Keeps the first of records whose sets of word n-grams are nearly the same, by MinHash (Broder 1997; arXiv:2107.06499).

    Two texts are compared where they agree in one band of `permutations / bands` minima, and are duplicates where the
    Jaccard similarity, estimated from the share of equal minima, is `threshold` or more. A text of fewer than `words` words
    is one n-gram. A record that stays takes 300 to 500 bytes of memory.
    """

    packages = ("rensa",)

    field: str = "text"
    threshold: ProperShare = 0.8
    words: Count = 5
    permutations: Count = 128
    bands: Count = 16
    seed: Seed = 0

    def __post_init__(self):
        if self.permutations % self.bands:
            raise ValueError(f"bands = {self.bands}; it must divide permutations = {self.permutations}")

    def key(self, record: Record) -> bytes:
        text = text_of(record, self.field)
        words = text.lower().split()
        found = package("rensa", self).RMinHash(num_perm=self.permutations, seed=self.seed)
        last = max(len(words) - self.words, 0) + 1
        found.update([" ".join(words[i : i + self.words]) for i in range(last)])
        signature = np.array(found.digest(), np.uint32).astype(np.uint8)
        shown = text[:SHOWN].encode("utf-8", "replace")
        return signature.tobytes() + band_hashes(signature[None], self.bands).tobytes() + shown

    def index(self):
        return _NearTexts(self)


class _NearTexts:
    def __init__(self, step: NearDuplicates):
        self.threshold = step.threshold
        self.permutations, self.bands = step.permutations, step.bands
        self.beginnings: list[bytes] = []
        self.known = MinHashIndex(step.permutations, step.bands)

    def ask(self, key: bytes) -> str:
        signature = np.frombuffer(key, np.uint8, self.permutations)
        hashes = np.frombuffer(key, np.uint64, self.bands, self.permutations).tolist()
        alike, slots = self.known.find(signature, hashes)
        if alike >= self.threshold:
            return f"near duplicate: similarity {alike:.2f}, {self.threshold:g} or more, to a text before{self._beginning()}"
        self.known.add(signature, hashes, slots)
        if len(self.beginnings) < REMEMBERED:
            self.beginnings.append(key[self.permutations + 8 * self.bands :])
        return ""

    def _beginning(self) -> str:
        """Of the text that is most alike, where it is remembered."""
        near = self.known.nearest
        return f": {self.beginnings[near].decode()}" if near < len(self.beginnings) else ""
