"""Parse `train.profile`, which names the steps to profile.

"100:110" means the ten steps that follow the first 100.
"""

import re
from typing import NamedTuple


class Window(NamedTuple):
    """The profiled steps, from `first` to `last`."""

    first: int  # steps done when the window begins
    last: int  # steps done when the window ends

    @property
    def steps(self) -> int:
        return self.last - self.first

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"


def parse(text: str) -> Window:
    """Parse FIRST:LAST. Raises ValueError for any other text."""
    found = re.fullmatch(r"(\d+):(\d+)", text.strip())
    if found is None:
        raise ValueError(f"train.profile = {text!r}; it must be FIRST:LAST in steps, such as 100:110")
    window = Window(int(found[1]), int(found[2]))
    if window.steps < 1:
        raise ValueError(f"train.profile = {text!r} holds no step; LAST must be above FIRST, as in 100:110")
    return window


def check(text: str, steps: int, start: int = 0) -> Window | None:
    """The window of `train.profile`; None if the text is empty.

    steps: steps of the run. start: the step from which this process continues. Raises ValueError if
    the process will not run the whole window.
    """
    if not text:
        return None
    window = parse(text)
    if window.last > steps:
        nearest = f"{max(start, steps - window.steps)}:{steps}"
        raise ValueError(
            f"train.profile = {text!r}: the run has {steps} steps; LAST must be at most {steps}, as in {nearest}"
        )
    if window.first < start:
        more = f", as in {start}:{min(steps, start + window.steps)}" if start < steps else ", and train.steps above it"
        raise ValueError(
            f"train.profile = {text!r} begins before step {start}, from which the run continues; FIRST must be at "
            f"least {start}{more}"
        )
    return window
