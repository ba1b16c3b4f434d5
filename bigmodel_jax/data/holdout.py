"""A validation split cut from the training records: which ones, by their content alone."""

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
