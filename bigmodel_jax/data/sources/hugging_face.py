"""Records of a Hugging Face `datasets` object, which a user's function loads or builds."""

import dataclasses
import functools
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.images import pictures
from bigmodel_jax.data.sources.function_source import OPTION, FunctionSource
from bigmodel_jax.data.sources.source import Records

BATCH = 256  # records that are in memory at once


@dataclasses.dataclass(frozen=True)
class HuggingFaceDataset(FunctionSource):
    """A `datasets.DatasetDict`, or a `Dataset` for training alone.

    The user's function names the columns as the data config expects (`rename_column`), and names
    the splits train, validation and test. Images come as (H, W, 3) uint8. A list of `ClassLabel`s
    comes as a list of class names, a single `ClassLabel` as its number.
    """

    def kinds(self):
        try:
            import datasets
        except ModuleNotFoundError:
            raise ValueError(
                f"{OPTION}: {self.function} needs the package datasets: uv sync --extra datasets"
            ) from None
        return (datasets.Dataset,), "a datasets.Dataset or DatasetDict, not a stream,"

    def fingerprint(self, split, root):
        """Hash the content, at about a second per gigabyte.

        The fingerprint of the package itself is random for data in memory.
        """
        return _digest(self.split(split))

    def labels(self):
        return tuple(getattr(self.split("train").features.get("label"), "names", None) or ())

    def records(self, split, root, bad):
        return self._records(split, bad, _picture)

    def encoded(self, split, root, bad):
        return self._records(split, bad, _file)

    def _records(self, split: str, bad: BadRecords, picture: Callable[[Any], Any]) -> Records:
        """Yield the records; `picture` converts the stored form of an image."""
        dataset = self.split(split)
        readers = {name: read for name, feature in dataset.features.items() if (read := _reader(feature, picture))}
        number = 0
        for batch in dataset.with_format("arrow").iter(BATCH):
            for record in batch.to_pylist():
                where, number = f"{self.function} {split} record {number}", number + 1
                try:
                    yield where, record | {name: read(record[name]) for name, read in readers.items()}
                except ValueError as error:
                    bad.skip(where, str(error))


@functools.lru_cache(maxsize=8)
def _digest(dataset: Any) -> str:
    digest = hashlib.sha256(str(dataset.features).encode())
    for batch in dataset.with_format("arrow").iter(BATCH):
        # Serialized bytes would depend on how the data is divided into chunks, so chunks are
        # joined.
        for part in batch.combine_chunks().to_batches():
            digest.update(part.serialize())
    return digest.hexdigest()[:16]


def _reader(feature: Any, picture: Callable[[Any], Any]) -> Callable[[Any], Any] | None:
    """Return the function that converts a column's values; None where they stay as they are."""
    import datasets

    if isinstance(feature, datasets.Image):
        return picture
    inner = getattr(feature, "feature", None)
    if isinstance(inner, datasets.ClassLabel):
        return lambda numbers: None if numbers is None else [inner.int2str(n) for n in numbers]
    while isinstance(inner, (datasets.List, datasets.LargeList)):
        inner = inner.feature
    if getattr(inner, "dtype", getattr(feature, "shape", None) and feature.dtype) == "uint8":
        return lambda values: np.asarray(values, np.uint8)  # uint8 marks pixels, as opposed to other numbers
    return None


def _file(stored: dict[str, Any] | None) -> bytes:
    """Return the bytes of a stored image file."""
    if stored is None:
        raise ValueError("no picture")
    if stored["bytes"] is not None:
        return stored["bytes"]
    if not Path(stored["path"]).is_file():  # opening a pipe would wait for ever
        raise ValueError(f"{stored['path']} is not a file")
    return Path(stored["path"]).read_bytes()


def _picture(stored: dict[str, Any] | None) -> Any:
    """Decode a stored image."""
    if stored is None:
        raise ValueError("no picture")
    if stored["bytes"] is None:
        return pictures.read(Path(stored["path"]))
    return pictures.decode(io.BytesIO(stored["bytes"]), stored["path"] or "its picture")
