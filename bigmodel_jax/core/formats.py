"""The number of the form in which a run is kept: config.json and each checkpoint carry it, with the version that wrote.

`FORMAT` is raised when a version writes what the versions before would misread. Everything from number 1 on is read;
that is held by runs which earlier versions left (tests/faults/past_runs).
"""

import importlib.metadata
from pathlib import Path
from typing import Any

FORMAT = 2  # 1 carried no number
KEYS = ("format", "version")


class Unknown(ValueError):
    """A format that this version does not read."""


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
