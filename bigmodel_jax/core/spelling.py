"""Finds the known name nearest to an unknown one, for error messages."""

import difflib
import re
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """ " (perhaps you meant ...)" with the closest name, or ""; cutoff: the least similarity, up to
    1."""
    # A part that both names share, such as "eval/", "--optim." or ".py", does not make them alike,
    # so the last parts must be alike as well.
    alike = [name for name in known if closest(_last(word), [_last(name)], 1, cutoff)]
    near = closest(word, alike, 1, cutoff)
    return f" (perhaps you meant {near[0]!r})" if near else ""


def closest(word: str, known: Iterable[str], count: int, cutoff: float = 0.0) -> list[str]:
    """At most `count` of the known names, the most similar first."""
    return difflib.get_close_matches(word, list(known), n=count, cutoff=cutoff)


def _last(name: str) -> str:
    return re.split(r"[/.]", name.removesuffix(".py"))[-1]
