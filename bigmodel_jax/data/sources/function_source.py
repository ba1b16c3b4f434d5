"""Sources whose data sets a function of the user's makes: what those of Hugging Face and of Grain have in common."""

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
    """The function takes no arguments, is named as that of `Arrays`, and returns {"train": data set, "validation": …}, or
    one data set for training alone. It is called once in a process."""

    function: FunctionName = ""

    def __post_init__(self):
        object.__setattr__(self, "function", user_code.name_of(OPTION, self.function))

    def short_name(self):
        return self.function.rpartition(":")[2]

    def has(self, split, root):
        return split in self.splits()

    def kinds(self) -> tuple[tuple[type, ...], str]:
        """The types of data sets that are taken, and what they are called."""
        raise NotImplementedError(f"{type(self).__name__} does not define kinds()")

    def splits(self) -> dict[str, Any]:
        found, (kinds, called) = _made(user_code.find(OPTION, self.function), self.function), self.kinds()
        found = {"train": found} if isinstance(found, kinds) else found
        wrong = [part for part in found.values() if not isinstance(part, kinds)] if isinstance(found, dict) else [found]
        if wrong:
            raise ValueError(f"{OPTION}: {self.function} returns {type(wrong[0]).__name__}; {called} is needed")
        return found

    def split(self, split: str) -> Any:
        splits = self.splits()
        if split not in splits:
            raise ValueError(f"{OPTION}: {self.function} gives the splits {', '.join(splits)}; {split!r} is needed")
        return splits[split]


@functools.cache
def _made(function: Callable, name: str) -> Any:
    return user_code.call(OPTION, name)
