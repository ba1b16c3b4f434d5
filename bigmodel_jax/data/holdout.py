"""Splits training records into training and validation, or into folds, by their content alone."""

import collections
import hashlib
import math
from collections.abc import Sequence


def held_out(contents: Sequence[bytes], fraction: float, seed: int = 0) -> list[bool]:
    """Tell for each record whether it belongs to the validation split.

    The split takes the records with the smallest hashes, `fraction` of all. So the order of the
    records does not matter, and equal records lie on the same side. Adding or removing a record
    moves only the few records at the border. At least one record is held out, and at least one is
    kept.
    """
    digests = [hashlib.sha256(f"{seed} ".encode() + content).digest() for content in contents]
    distinct = sorted(set(digests))
    if len(distinct) < 2:
        raise ValueError(f"data.validation_fraction = {fraction}: {len(distinct)} distinct records cannot be split")
    wanted = min(max(math.floor(fraction * len(digests)), 1), len(digests) - 1)
    # The largest digest always stays in the training split.
    border = min(sorted(digests)[wanted - 1], distinct[-2])
    return [digest <= border for digest in digests]


def check_fraction(fraction: float) -> None:
    """Raise ValueError unless the fraction lies strictly between 0 and 1."""
    if not 0 < fraction < 1:
        raise ValueError(f"data.validation_fraction = {fraction}; it must be above 0 and below 1")


def folds(units: Sequence[bytes], k: int, labels: Sequence[str] | None = None, seed: int = 0) -> list[int]:
    """Return the fold, 0 .. k - 1, of each record.

    `units` holds the bytes that identify each record's unit: the record itself, or its group. A
    unit is never divided. The folds are as equal in size as the units allow. With `labels`, one per
    record, each label is also spread as evenly as possible. The order of the records does not
    matter. Raises ValueError where there are fewer units than folds.
    """
    members = collections.defaultdict(collections.Counter)
    for unit, label in zip(units, labels or [""] * len(units), strict=True):
        members[hashlib.sha256(f"{seed} ".encode() + unit).digest()][label] += 1
    if len(members) < k:
        raise ValueError(f"{k} folds of {len(members)} different records or groups: each fold needs at least one")
    # Large units come first, because later units can make up for their size. Then units are sorted
    # by label.
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
