"""What data is: a config that opens a split as rows, any of which can be read at any time."""

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


# What a field of data is to two runs whose figures are held against each other; a field without a kind decides which rows
# are held out. place: nothing. training: the training rows. shape: the shape of a batch. prepares: how a row is prepared.
Compared = Literal["place", "training", "shape", "tokenizer", "prepares"]


class Rows(Protocol):
    """Random access to the rows of one split."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        """Freshly allocated arrays (len(indices), ...). `noise` is one random uint64 per row in training, None in
        evaluation, where nothing is random and the batch may hold what only metrics need."""
        ...


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Base of every data config. A field that names a split's file is called as the split: train, validation, test."""

    levels: ClassVar[tuple[Metric, ...]] = ()
    "what `baselines` gives"
    RENAMED: ClassVar[dict[str, str]] = {}
    "what fields were once called: a run's config.json of then still opens, and an option says what it is called now"
    required_by: ClassVar[dict[str, str]] = {}
    "the field from which a requirement of this name comes, for messages"
    exact: ClassVar[frozenset[str]] = frozenset({"eos_token_id", "decoder_start_token_id"})
    "requirements that no other number meets, for it is the name of a token"
    compared: ClassVar[dict[str, Compared]] = {"cache_dir": "place", "max_bad_records": "training"}
    "what its fields are to two runs that are compared; a field that is not named decides which rows are held out"
    cut: ClassVar[str] = ""
    "the field by which the validation rows are cut from the training rows where the source has none"
    endless: ClassVar[bool] = False
    "its training rows have no end (a stream, or rows made as they are asked for): a run says its steps, not its epochs"

    prompts: ClassVar[bool] = False
    "its rows are prompts alone: a run's batches are the answers of its own weights (training/rollouts.py)"

    group_by: ClassVar[str] = ""
    "the column whose values tell the groups of rows apart that an evaluation also reports; a class with columns has the field"

    cache_dir: str = ""
    "where prepared data is kept; empty: $BIGMODEL_CACHE, or ~/.cache/bigmodel_jax"
    max_bad_records: CountOrZero = 0
    "so many unusable records of a split are skipped and logged; one more is an error"

    def open(self, split: str) -> Rows:
        """The rows of `split` ("train" or "validation"), prepared into the cache at first."""
        raise NotImplementedError(f"{type(self).__name__} does not define open()")

    def experience(self, config: Any, mesh: Any) -> Any:
        """The `Experience` (data/experience.py) that a run of `config` trains on; None: the rows of "train", shuffled."""

    def row(self) -> dict[str, Field]:
        """The arrays of a row by name, known from the config alone: no data is read.

        {}: not declared. Then shapes are read from the data, every device has its rows' arrays whole, a step is counted
        in examples, and what model and objective read is checked once the data is open.
        """
        return {}

    def validate(self, batch_size: int) -> None:
        """Raises ValueError where batches of so many rows cannot be made, before data is opened."""

    def requirements(self) -> dict:
        """What a model must offer to take this data, by the names of its config's fields: a whole number is the
        least, anything else must be equal."""
        return {}

    def groups(self) -> tuple[str, ...]:
        """The names of the groups of `group_by` among the validation rows, whose numbers an evaluation's batch has as
        "group" (B,) int32."""
        return ()

    def label_column(self) -> str:
        """The field of a source's record that holds its one label, whose shares folds of the records keep; "": none has."""
        return ""

    def record_form(self) -> Literal["records", "encoded"]:
        """The method of its source by which its rows are read."""
        return "records"

    def baselines(self) -> dict[str, float]:
        """What simple methods reach on the validation split, by the names of `levels`; may take seconds the first time."""
        return {}

    def of_run(self, folder: Path) -> "DataConfig":
        """Itself, with what the run in `folder` kept of its training split in place of what that split says now."""
        return self

    def processor(self, run_dir: Path) -> dict[str, Any]:
        """preprocessor_config.json of an export of the run in `run_dir`, where its rows are pictures of a known cut."""
        return {}

    def sheet(self, first: Callable[[], dict[str, np.ndarray]]) -> tuple[np.ndarray, list[str]] | None:
        """(pictures (N, H, W, 1 or 3) float32 in 0 .. 1, a title each) of training rows, which `first` reads, as the model gets
        them; None: its rows are no pictures, or training sees what evaluation sees."""

    def picture(self, path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
        """A picture file as evaluation gives it to a model of images of this shape, (H, W, C) float32; None: its rows are no
        pictures."""

    def asked(
        self, path: Path, prompt: str, tokenizer: Tokenizer, template: str
    ) -> tuple[list[int], dict[str, np.ndarray]]:
        """(the tokens that ask about a picture file, what the model reads beside them as arrays of one row). template: the
        run's chat template, or "". ValueError where its rows are no pictures with answers."""
        raise ValueError(f"image = {str(path)!r}: a run on {type(self).__name__} reads no picture; leave it out")

    def blank(self, shape: tuple[int, ...]) -> np.ndarray:
        """A black picture of this shape, as `picture` gives one."""
        return np.zeros(shape, np.float32)

    def shown(self, images: np.ndarray) -> np.ndarray:
        """A batch's images in 0 .. 1."""
        return np.clip(images, 0, 1)

    def save_artifacts(self, folder: Path) -> None:
        """Writes what a run needs besides weights to be used later (a tokenizer)."""

    def conditions(self, num: int) -> tuple[dict[str, np.ndarray], list[str]] | None:
        """What `num` generated images are to show: a batch of all that a model is told, and a title for each image."""

    def open_tokenizer(self) -> Tokenizer | None:
        """Between text and tokens, where this data is text."""

    def reads(self) -> dict[str, list[Path] | str]:
        """What the records are made from, by the name of the field that says it: files, or a text that changes when the
        records do. It is compared when a run is continued. A class that reads what no text field names adds it here."""
        return named_files(self, self.root())

    def with_places(self, options: list[str]) -> "DataConfig":
        """Itself, longer where options ("data.stages.2.step") name an entry that it has not yet and may get."""
        return self

    def ahead(self, before: "DataConfig", step: int) -> tuple[str, ...]:
        """The fields, by dotted names, that a run which stands at `step` may have in addition to those of `before`;
        ValueError where one of them would change what it has seen."""
        return ()

    def root(self) -> Path:
        return cache.root(self.cache_dir)


def inner(data: DataConfig) -> Iterator[DataConfig]:
    """A data config and those inside it, each with the cache that holds for it: its own, or else that of the whole."""
    for part in user_code.parts(data):
        if isinstance(part, DataConfig):
            yield dataclasses.replace(part, cache_dir=part.cache_dir or data.cache_dir)


def named_files(part: Any, root: Path, prefix: str = "data") -> dict[str, list[Path] | str]:
    """The files that text fields name, and what sources and tokenizers say of themselves, by dotted names."""
    found = {}
    for field in dataclasses.fields(part):
        value, name = getattr(part, field.name), f"{prefix}.{field.name}"
        if dataclasses.is_dataclass(value):
            says = value.reads(root) if hasattr(value, "reads") else None
            found |= named_files(value, root, name) if says is None else {f"{name}.{k}": v for k, v in says.items()}
        elif ranges.hints(type(part))[field.name] is str and os.path.isfile(path := os.path.expanduser(value)):
            found[name] = [Path(path)]
    return found


class BadRecords:
    """Skips unusable records up to a limit. The next one is a ValueError that says where it is and what is wrong."""

    def __init__(self, limit: int):
        self.limit = limit
        self.skipped: list[tuple[str, str]] = []

    def skip(self, where: str, reason: str) -> None:
        self.skipped.append((where, reason))
        if len(self.skipped) > self.limit:
            before = f"after {self.limit} others, " if self.limit else ""
            raise ValueError(f"{where}: {reason} ({before}data.max_bad_records: {self.limit} allows no more)")


def lacks(record: dict[str, Any], *names: str) -> str:
    """Which of these fields a record has not, and which it has; "" where it has all."""
    for name in names:
        if name not in record:
            has = ", ".join(map(str, record))[:100] or "none"
            return f"no field {name!r}{nearest(name, map(str, record))}; its fields: {has}"
    return ""


def log_skipped(split: str, skipped: list[list[str]]) -> None:
    """Names in the log what a split's preparation skipped, now or in an earlier run."""
    for where, reason in skipped:
        log.warning("%s split: skipped %s: %s", split, where, reason)
