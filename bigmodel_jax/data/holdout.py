"""A validation split cut from the training records, or folds of them: which ones, by their content alone."""

import collections
import hashlib
import math
from collections.abc import Sequence


def held_out(contents: Sequence[bytes], fraction: float, seed: int = 0) -> list[bool]:
    """Whether each record belongs to the validation split: `fraction` of them, those whose hash is the smallest.

    The order of the records plays no part, equal records always lie on the same side, and a record that is added or
    removed moves at most as many others as the border needs. At least one record is held out, and one is kept.
    """
    digests = [hashlib.sha256(f"{seed} ".encode() + content).digest() for content in contents]
    distinct = sorted(set(digests))
    if len(distinct) < 2:
        raise ValueError(f"data.validation_fraction = {fraction}: {len(distinct)} distinct records cannot be split")
    wanted = min(max(math.floor(fraction * len(digests)), 1), len(digests) - 1)
    border = min(sorted(digests)[wanted - 1], distinct[-2])
    return [digest <= border for digest in digests]


def check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"data.validation_fraction = {fraction}; it must be above 0 and below 1")


def folds(units: Sequence[bytes], k: int, labels: Sequence[str] | None = None, seed: int = 0) -> list[int]:
    """The fold, 0 .. k - 1, of each record, given what tells its unit: equal records, or records of one group.

    A unit lies in one fold. The folds are of sizes as even as units allow; with `labels`, one for each record, each label
    is spread as evenly over them, too. The order of the records plays no part. ValueError where there are fewer units
    than folds.
    """
    members = collections.defaultdict(collections.Counter)
    for unit, label in zip(units, labels or [""] * len(units), strict=True):
        members[hashlib.sha256(f"{seed} ".encode() + unit).digest()][label] += 1
    if len(members) < k:
        raise ValueError(f"{k} folds of {len(members)} different records or groups: each fold needs one at least")
    # Large units first, as they are the hardest to make up for; then one label after the other.
    common = {unit: min(found, key=lambda label: (-found[label], label)) for unit, found in members.items()}
    order = sorted(members, key=lambda unit: (-members[unit].total(), common[unit], unit))
    sizes, of_label, place = [0] * k, collections.defaultdict(lambda: [0] * k), {}
    for unit in order:
        held = of_label[common[unit]]
        place[unit] = min(range(k), key=lambda fold: (held[fold], sizes[fold], fold))
        sizes[place[unit]] += members[unit].total()
        for label, count in members[unit].items():
            of_label[label][place[unit]] += count
    return [place[hashlib.sha256(f"{seed} ".encode() + unit).digest()] for unit in units]
