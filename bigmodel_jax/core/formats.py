"""The format number of a run's files: config.json and each checkpoint carry it, with the version
that wrote them.

`FORMAT` grows when a version writes something that earlier versions would misread. This version
reads all formats from 1 on; tests/faults/past_runs holds runs that earlier versions wrote.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

FORMAT = 2  # files of format 1 carry no number
KEYS = ("format", "version")
# Modules that were moved into a folder of data/: {folder: the files that lay in data/ before}. An
# older config.json names its classes by their old modules.
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
    """Raised for a format that this version cannot read."""


def module_now(name: str) -> str:
    """The present name of the module that an older config.json calls `name`."""
    return _NOW.get(name, name)


def version() -> str:
    """This package's version."""
    try:
        return importlib.metadata.version("bigmodel-jax")
    except importlib.metadata.PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"


def stamp() -> dict[str, Any]:
    """The format number and package version, as config.json and checkpoints carry them."""
    return {"format": FORMAT, "version": version()}


def opened(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content of `path` without its stamp. Raises Unknown if a newer version wrote it."""
    number, writer = found.get("format", 1), found.get("version", "of an unknown version")
    # JSON's true is a bool, which Python counts as an int.
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise Unknown(f"{path}: format = {number!r}; it must be a whole number, 1 or more")
    if number > FORMAT:
        raise Unknown(
            f"{path}: bigmodel_jax {writer} wrote it in format {number}; this version, {version()}, reads up to "
            f"format {FORMAT}: use bigmodel_jax {writer} or a newer one"
        )
    # The stamp is no field of the config, so readers must not see it.
    return {key: value for key, value in found.items() if key not in KEYS}
