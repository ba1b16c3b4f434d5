"""The nearest of the known names, for messages about a name that is not one of them."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """ " (perhaps you meant ...)" with the closest of `known`, or nothing; cutoff: how alike they must be, up to 1."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" (perhaps you meant {near[0]!r})" if near else ""
