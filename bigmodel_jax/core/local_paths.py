"""Paths are of this machine: an address of an object store is refused before a folder of its name is made here."""

import re
from pathlib import Path


def expanded(option: str, path: str | Path) -> Path:
    """`path`, the value of `option`, with ~ and ~user as the folders that they stand for; ValueError for no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{option} = {str(path)!r}: there is no such user on this machine") from error


def check_local(option: str, path: str | Path) -> None:
    """ValueError where `path`, the value of `option`, is an address such as gs://bucket/run; pathlib drops one slash."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise ValueError(
            f"{option} = {str(path)!r} is an address; files are read and written on this machine alone: "
            "give a path here (a bucket can be mounted as a folder)"
        )
