"""The base class of data configs: a config opens a split as rows that are read in any order."""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from bigmodel_jax.core import ranges, user_code
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.core.ranges import CountOrZero
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data import cache
from bigmodel_jax.data.fields import Field
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

log = logging.getLogger(__name__)


# The kind of a field says how it matters when two runs are compared. "place": not at all.
# "training": it changes the training rows. "shape": it changes the shape of a batch. "tokenizer":
# it changes the tokens. "prepares": it changes how a row is prepared. A field without a kind
# changes which rows are held out.
Compared = Literal["place", "training", "shape", "tokenizer", "prepares"]


class Rows(Protocol):
    """Random access to the rows of one split."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        """Return the rows of these indices as freshly allocated arrays (len(indices), ...).

        In training, `noise` holds one random uint64 per row. In evaluation it is None: then nothing
        is random, and the batch may hold arrays that only metrics read.
        """
        ...


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The base class of every data config.

    Fields that name a split's file are called like the split: train, validation, test.
    """

    levels: ClassVar[tuple[Metric, ...]] = ()
    "the metrics that `baselines` returns"
    RENAMED: ClassVar[dict[str, str]] = {}
    """former name of a field -> present name; old config.json files still open, and old options are
    explained"""
    required_by: ClassVar[dict[str, str]] = {}
    "name of a requirement -> the field of this config that causes it, for messages"
    exact: ClassVar[frozenset[str]] = frozenset({"eos_token_id", "decoder_start_token_id", "bos_token_id", "text_bos"})
    "requirements whose value must be equal and not only large enough: token ids, and true or false"
    compared: ClassVar[dict[str, Compared]] = {"cache_dir": "place", "max_bad_records": "training"}
    """field -> its kind when two runs are compared; a field not listed here changes which rows are
    held out"""
    cut: ClassVar[str] = ""
    """the field that cuts validation rows from the training rows where the source has no validation
    split"""
    endless: ClassVar[bool] = False
    """the training rows never end (a stream, or generated rows), so a run counts steps and not
    epochs"""

    prompts: ClassVar[bool] = False
    """the rows are prompts alone, and a run trains on answers of its own model
    (training/rollouts.py)"""

    group_by: ClassVar[str] = ""
    """column whose values divide the rows into groups that an evaluation reports; classes with
    columns override it"""

    cache_dir: str = ""
    "folder of prepared data; empty: $BIGMODEL_CACHE, or ~/.cache/bigmodel_jax"
    max_bad_records: CountOrZero = 0
    "how many unusable records of a split are skipped and logged; one more raises an error"

    def open(self, split: str) -> Rows:
        """Return the rows of `split` ("train" or "validation"), and prepare them into the cache."""
        raise NotImplementedError(f"{type(self).__name__} does not define open()")

    def experience(self, config: Any, mesh: Any) -> Any:
        """Return the `Experience` (data/experience.py) that a run of `config` trains on.

        If it is None, the run trains on the shuffled rows of "train".
        """

    def held_out(self, config: Any, mesh: Any) -> Any:
        """Return the object whose `made_by` makes validation batches from the weights of a run.

        If it is None, validation reads the rows of "validation".
        """

    def row(self) -> dict[str, Field]:
        """Return the arrays of a row by name, as the config alone declares them. No data is read.

        {} means that the config declares none. Then shapes are read from the data, batches are
        split along no other axis, and a step is counted in examples. What the model and the
        objective read is checked only once the data is open.
        """
        return {}

    def validate(self, batch_size: int) -> None:
        """Raise ValueError where batches of this size are impossible, before data is opened."""

    def requirements(self) -> dict:
        """Return what a model's config must offer to take this data, by field name.

        A whole number is the least value of its field. Any other value must equal the field's.
        """
        return {}

    def groups(self) -> tuple[str, ...]:
        """Return the names of the validation groups that `group_by` tells apart.

        An evaluation batch holds the number of each row's group as "group" (B,) int32.
        """
        return ()

    def label_column(self) -> str:
        """Return the record field with the record's one label; "" where there is none.

        Cross-validation folds keep the shares of its values.
        """
        return ""

    def record_form(self) -> Literal["records", "encoded"]:
        """Return the name of the source's method that yields the records."""
        return "records"

    def baselines(self) -> dict[str, float]:
        """Return the scores of simple methods on the validation split, by the names of `levels`.

        The first call may take seconds.
        """
        return {}

    def of_run(self, folder: Path) -> "DataConfig":
        """Return this config with the training split's facts that the run in `folder` saved."""
        return self

    def processor(self, run_dir: Path) -> dict[str, Any]:
        """Return preprocessor_config.json for an export of the run in `run_dir`.

        {} where the rows are not images of a known preparation.
        """
        return {}

    def sheet(self, first: Callable[[], dict[str, np.ndarray]]) -> tuple[np.ndarray, list[str]] | None:
        """Return training images as the model gets them, with a title each, for a contact sheet.

        The images are (N, H, W, 1 or 3) float32 in 0 .. 1. `first` returns the arrays of the first
        training rows. The result is None where the rows are not images, or where training does not
        augment them.
        """

    def picture(self, path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return an image file as evaluation prepares it: `shape` (H, W, C), float32.

        None where the rows are not images.
        """

    def asked(
        self, path: Path, prompt: str, tokenizer: Tokenizer, template: str
    ) -> tuple[list[int], dict[str, np.ndarray]]:
        """Return (prompt tokens that ask about an image file, the other arrays of that row).

        `template` is the run's chat template, or "". Raises ValueError where the rows are not
        images with answers.
        """
        raise ValueError(f"image = {str(path)!r}: a run on {type(self).__name__} reads no picture; leave it out")

    def blank(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return a black image of this shape in the value range of `picture`."""
        return np.zeros(shape, np.float32)

    def shown(self, images: np.ndarray) -> np.ndarray:
        """Return a batch's images in 0 .. 1, to be displayed."""
        return np.clip(images, 0, 1)

    def save_artifacts(self, folder: Path) -> None:
        """Write into `folder` what a run needs besides its weights, such as the tokenizer."""

    def conditions(self, num: int) -> tuple[dict[str, np.ndarray], list[str]] | None:
        """Return the conditions of `num` generated images, or None where there are none.

        They are a batch of the arrays that condition the model, and a title for each image.
        """

    def open_tokenizer(self) -> Tokenizer | None:
        """Return the tokenizer, or None where the data is not text."""

    def reads(self) -> dict[str, list[Path] | str]:
        """Return what the records are made from, by the name of the field that names it.

        A value is a list of files, or a text that changes when the records change. The values are
        compared when a run is continued. A class overrides this where it reads a file that no text
        field names.
        """
        return named_files(self, self.root())

    def check_tokenizers(self) -> None:
        """Raise ValueError where one model would read texts of different tokenizers."""

    def with_places(self, options: list[str]) -> "DataConfig":
        """Return this config with entries added for options such as "data.stages.2.step".

        An entry is added only where it does not exist yet and the config allows it.
        """
        return self

    def ahead(self, before: "DataConfig", step: int) -> tuple[str, ...]:
        """Return the dotted names of the fields that a run at `step` may add to those of `before`.

        Raises ValueError where one of them would change rows that the run has already seen.
        """
        return ()

    def root(self) -> Path:
        """Return the cache folder."""
        return cache.root(self.cache_dir)


def inner(data: DataConfig) -> Iterator[DataConfig]:
    """Yield a data config and the configs inside it.

    An inner config without a `cache_dir` of its own gets that of the outer config.
    """
    for part in user_code.parts(data):
        if isinstance(part, DataConfig):
            yield dataclasses.replace(part, cache_dir=part.cache_dir or data.cache_dir)


def named_files(part: Any, root: Path, prefix: str = "data") -> dict[str, list[Path] | str]:
    """Return the files of text fields, and what sources and tokenizers report, by dotted name."""
    found = {}
    for field in dataclasses.fields(part):
        value, name = getattr(part, field.name), f"{prefix}.{field.name}"
        if dataclasses.is_dataclass(value):
            says = value.reads(root) if hasattr(value, "reads") else None
            found |= named_files(value, root, name) if says is None else {f"{name}.{k}": v for k, v in says.items()}
        # Only a field of type str names a file. A choice may equal a file's name by chance.
        elif ranges.hints(type(part))[field.name] is str and os.path.isfile(path := os.path.expanduser(value)):
            found[name] = [Path(path)]
    return found


class BadRecords:
    """Skips bad records up to a limit. One more raises ValueError with its place and reason."""

    def __init__(self, limit: int):
        self.limit = limit
        self.skipped: list[tuple[str, str]] = []

    def skip(self, where: str, reason: str) -> None:
        """Count a bad record. Raises ValueError if there are then more than `limit`."""
        self.skipped.append((where, reason))
        if len(self.skipped) > self.limit:
            before = f"after {self.limit} others, " if self.limit else ""
            raise ValueError(f"{where}: {reason} ({before}data.max_bad_records: {self.limit} allows no more)")


def lacks(record: dict[str, Any], *names: str) -> str:
    """Return a message about the first of these fields that a record lacks; "" where it has all."""
    for name in names:
        if name not in record:
            has = ", ".join(map(str, record))[:100] or "none"
            return f"no field {name!r}{nearest(name, map(str, record))}; its fields: {has}"
    return ""


def log_skipped(split: str, skipped: list[list[str]]) -> None:
    """Log the records that a split's preparation skipped, in this run or an earlier one."""
    for where, reason in skipped:
        log.warning("%s split: skipped %s: %s", split, where, reason)


def log_truncated(split: str, num: int, total: int, seq_len: int) -> None:
    """Log how many texts of a split are longer than a row."""
    if num:
        log.warning(
            "%s split: %d of %d texts are longer than data.seq_len = %d, and lose their end", split, num, total, seq_len
        )
