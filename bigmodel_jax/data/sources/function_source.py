"""The base class of sources whose data sets a user's function makes (Hugging Face, Grain)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from bigmodel_jax.core import user_code
from bigmodel_jax.core.user_code import FunctionName
from bigmodel_jax.data.sources.source import Source

OPTION = "data.source.function"


@dataclasses.dataclass(frozen=True)
class FunctionSource(Source):
    """A source whose data sets a user's function returns. It is called once per process.

    The function takes no arguments, and is named like the function of `Arrays`. It returns
    {"train": data set, "validation": …}, or one data set for training alone.
    """

    function: FunctionName = ""
    "the function or its name"

    def __post_init__(self):
        # config.json can hold only a function's name; a frozen dataclass forbids plain assignment.
        object.__setattr__(self, "function", user_code.name_of(OPTION, self.function))

    def short_name(self):
        return self.function.rpartition(":")[2]

    def has(self, split, root):
        return split in self.splits()

    def kinds(self) -> tuple[tuple[type, ...], str]:
        """Return the accepted types of data sets, and their description for messages."""
        raise NotImplementedError(f"{type(self).__name__} does not define kinds()")

    def splits(self) -> dict[str, Any]:
        """Return the data sets by split. Raises ValueError for a data set of another type."""
        found, (kinds, called) = _made(user_code.find(OPTION, self.function), self.function), self.kinds()
        found = {"train": found} if isinstance(found, kinds) else found
        wrong = [part for part in found.values() if not isinstance(part, kinds)] if isinstance(found, dict) else [found]
        if wrong:
            raise ValueError(f"{OPTION}: {self.function} returns {type(wrong[0]).__name__}; {called} is needed")
        return found

    def split(self, split: str) -> Any:
        """Return the data set of a split. Raises ValueError where the function does not give it."""
        splits = self.splits()
        if split not in splits:
            raise ValueError(f"{OPTION}: {self.function} gives the splits {', '.join(splits)}; {split!r} is needed")
        return splits[split]


# A second call could load for minutes again, or return other data.
@functools.cache
def _made(function: Callable, name: str) -> Any:
    return user_code.call(OPTION, name)
