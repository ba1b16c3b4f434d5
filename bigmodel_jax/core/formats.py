"""The number of the form in which a run is kept: config.json and each checkpoint carry it, with the version that wrote.

`FORMAT` is raised when a version writes what the versions before would misread. Everything from number 1 on is read;
that is held by runs which earlier versions left (tests/faults/past_runs).
"""

import importlib.metadata
from pathlib import Path
from typing import Any

FORMAT = 2  # 1 carried no number
KEYS = ("format", "version")
# Where the classes of a config.json lay when it was written: a folder of data/ -> the files that lay beside it.
MOVED = {
    "images": ("image", "image_text"),
    "sources": ("image_folders", "sources", "table_files"),
    "text": (
        *("chat_data", "masking", "permutation", "question_answering", "sentence_pairs", "span_corruption"),
        *("subword_classification", "text", "text_classification", "text_pairs", "token_labels"),
    ),
    "tokenizers": ("tokenizers",),
}
_DATA = "bigmodel_jax.data"
_NOW = {f"{_DATA}.{file}": f"{_DATA}.{folder}.{file}" for folder, names in MOVED.items() for file in names}


class Unknown(ValueError):
    """A format that this version does not read."""


def module_now(name: str) -> str:
    """The module that has the classes which a config.json finds in the module `name`."""
    return _NOW.get(name, name)


def version() -> str:
    """This package's version."""
    try:
        return importlib.metadata.version("bigmodel-jax")
    except importlib.metadata.PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"


def stamp() -> dict[str, Any]:
    return {"format": FORMAT, "version": version()}


def opened(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content of `path`, which carries a stamp, without it; Unknown where a newer version wrote it."""
    number, writer = found.get("format", 1), found.get("version", "of an unknown version")
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise Unknown(f"{path}: format = {number!r}; it must be a whole number, 1 or more")
    if number > FORMAT:
        raise Unknown(
            f"{path}: bigmodel_jax {writer} wrote it in format {number}; this version, {version()}, reads up to "
            f"format {FORMAT}: use bigmodel_jax {writer} or a newer one"
        )
    return {key: value for key, value in found.items() if key not in KEYS}
