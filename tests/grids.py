"""Grids of tests of which the suites run a few cases; the others are exhaustive."""

from collections.abc import Iterable
from typing import Any

import pytest


def few(values: Iterable[Any], *kept: Any, marks: Any = ()) -> list:
    """Parameters for every value of a grid. Those in `kept` have `marks`, and all others are
    exhaustive.

    A tuple is one case of several parameters.
    """
    return [
        pytest.param(*(x if isinstance(x, tuple) else (x,)), marks=marks if x in kept else pytest.mark.exhaustive)
        for x in values
    ]
