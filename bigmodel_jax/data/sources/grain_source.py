"""Grain pipelines as a source: Grain's readers, transformations, mixing and workers."""

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Iterator
from typing import Any

import cloudpickle
from absl import flags

from bigmodel_jax.core import user_code
from bigmodel_jax.data import cache
from bigmodel_jax.data.sources.function_source import OPTION, FunctionSource


@dataclasses.dataclass(frozen=True)
class GrainDataset(FunctionSource):
    """One finite `grain.MapDataset` or `grain.IterDataset` of records per split, without `repeat`.

    The data sets are read once for their fingerprint, and once more when the data is prepared.
    `mp_prefetch` makes the records in several processes.
    """

    def kinds(self):
        import grain

        return (grain.MapDataset, grain.IterDataset), "a grain.MapDataset or IterDataset, or a dict of them by split,"

    def fingerprint(self, split, root):
        return _digest(self.split(split), self.function)

    def records(self, split, root, bad):
        for i, record in enumerate(_elements(self.split(split), self.function)):
            where = f"{self.function} {split} record {i}"
            if isinstance(record, dict):
                yield where, record
            else:
                bad.skip(where, f"{type(record).__name__}, not a dict")


def _elements(dataset: Any, name: str) -> Iterator[Any]:
    """Yield the elements of a data set in order. `name` is the user's function."""
    if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags, which raise an error unless they are parsed
        flags.FLAGS.mark_as_parsed()
    if (file := name.rpartition(":")[0]).endswith(".py"):  # worker processes cannot import a config file by its name
        cloudpickle.register_pickle_by_value(sys.modules[file])
    elements = _of_map(dataset) if hasattr(dataset, "__getitem__") else iter(dataset)
    while True:
        try:
            element = next(elements)
        except StopIteration:
            return
        except Exception as error:  # a user's transformation may raise anything, here or in a worker process
            raise ValueError(f"{OPTION}: {name}: {user_code.described(error)}") from error
        yield element


def _of_map(dataset: Any) -> Iterator[Any]:
    """Yield the elements of a map data set; None stands for an element that was filtered out."""
    if len(dataset) == sys.maxsize:
        raise ValueError("the data set has no end; leave out repeat(), since training goes over it again anyway")
    yield from (element for i in range(len(dataset)) if (element := dataset[i]) is not None)


@functools.lru_cache(maxsize=8)
def _digest(dataset: Any, name: str) -> str:
    """Hash the content of all records."""
    digest = hashlib.sha256()
    for record in _elements(dataset, name):
        fields = sorted(record.items()) if isinstance(record, dict) else [("", record)]
        for field, value in fields:
            digest.update(f"{field} ".encode() + cache.content(value))
    return digest.hexdigest()[:16]
