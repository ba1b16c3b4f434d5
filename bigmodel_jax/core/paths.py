"""File access on this machine, through pathlib, and in buckets, through etils.epath and fsspec.

`gs://` needs the package gcsfs (the extra `gcs`), and `s3://` needs s3fs (the extra `s3`). Before
an address is used, the package, the bucket and the credentials are checked. Errors of a store
become one line with the address.
"""

import base64
import contextlib
import functools
import glob
import io
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

# With TensorFlow installed, epath would use its file system, whose errors and listings differ.
os.environ.setdefault("EPATH_USE_TF", "false")
# Without this gcsfs asks a gRPC service for the kind of a bucket. Emulators do not serve that host.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

# An exception from one of these packages is an error of a store: gcsfs and s3fs pass on errors of
# the packages below them.
PACKAGES = ("gcsfs", "aiohttp", "google", "requests", "s3fs", "botocore", "aiobotocore", "fsspec", "asyncio")
BLOCK = 1 << 20  # bytes requested by one read of a file in a bucket


class Store(NamedTuple):
    """An object store: its fsspec protocol, the package it needs, and commands to install it and
    log in."""

    protocol: str  # fsspec's name of the store
    package: str
    install: str
    login: str


STORES = {
    "gs": Store("gcs", "gcsfs", "uv sync --extra gcs", "gcloud auth application-default login"),
    "s3": Store("s3", "s3fs", "uv sync --extra s3", "aws configure"),
}
# The probe lists one object, because a role that may only read objects cannot read the bucket's own
# metadata.
PROBES = {
    "gs": lambda files, bucket: files.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True),
    "s3": lambda files, bucket: files.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1),
}


class Unanswered(ValueError):
    """Raised if a store does not answer or refuses. The message is one line with the address."""


class Stat(NamedTuple):
    """A file's size, and a number that changes with its content.

    size: bytes. changed: modification time in ns, or a number made from the generation in a bucket.
    """

    size: int
    changed: int


# ---------------------------------------------------------------- what a user gives


def expanded(option: str, path: str | Path) -> Path:
    """`path`, the value of `option`, with ~ or ~user expanded. Raises ValueError for an unknown
    user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{option} = {str(path)!r}: there is no such user on this machine") from error


def check_local(option: str, path: str | Path) -> None:
    """Raises ValueError if `path`, the value of `option`, is an address such as gs://bucket/run.

    pathlib turns :// into :/, so one slash is enough to recognise an address.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise ValueError(
            f"{option} = {str(path)!r} is an address; files are read and written on this machine alone: "
            "give a path here (a bucket can be mounted as a folder)"
        )


def check(option: str, path: str, schemes: Sequence[str]) -> None:
    """Raises ValueError, one line, for an address that cannot be used. A local path passes.

    An address fails if its scheme is not in `schemes`, or if its bucket cannot be read.
    """
    scheme, found, rest = path.partition("://")
    if not found or scheme not in schemes:
        if found and schemes and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
            allowed = " or ".join(f"{one}://BUCKET/…" for one in schemes)
            raise ValueError(f"{option} = {path!r}: {scheme}:// is not read and written here; give a path or {allowed}")
        return check_local(option, path)
    bucket = rest.split("/")[0]
    if not bucket or not rest.removeprefix(bucket).strip("/"):
        raise ValueError(f"{option} = {path!r} must name a bucket and what lies in it: {scheme}://BUCKET/NAME")
    if reason := _wrong(scheme, bucket):
        raise ValueError(f"{option} = {path!r}: {reason}")


@functools.cache
def _wrong(scheme: str, bucket: str) -> str:
    """Why this process cannot read a bucket; "" if it can."""
    store = STORES[scheme]
    try:
        PROBES[scheme](files(scheme), bucket)
    except ModuleNotFoundError:
        return f"{scheme}:// needs the package {store.package}: {store.install}"
    except FileNotFoundError:
        return f"there is no bucket {bucket!r}"
    except Exception as error:  # each package raises classes of its own
        refused = isinstance(error, PermissionError) or re.search(r"\b40[13]\b|Forbidden|credential", _reason(error))
        way = f"; credentials are missing or do not suffice: {store.login}" if refused else ""
        return f"the bucket cannot be read ({_reason(error)}){way}"
    return ""


# ---------------------------------------------------------------- the store


@functools.cache
def files(scheme: str) -> Any:
    """fsspec's file system of a scheme. Raises ModuleNotFoundError if its package is missing."""
    import fsspec

    store = STORES[scheme]
    # Orbax writes past fsspec, so a cached listing would miss its files.
    fsspec.config.conf.setdefault(store.protocol, {})["use_listings_cache"] = False
    logging.getLogger(store.package).addFilter(lambda record: False)  # it logs a traceback of each error that it raises
    try:
        return fsspec.filesystem(store.protocol)
    except ImportError as error:
        raise ModuleNotFoundError(store.package) from error


def is_remote(path: Path | str) -> bool:
    """Whether a path is an address in a bucket."""
    return "://" in str(path)


def remote(address: str) -> Path:
    """The epath object of an address."""
    from etils import epath

    return epath.Path(address)


def of(path: Path | str) -> Any:
    """fsspec's file system for a remote path."""
    return files(str(path).partition("://")[0])


@contextlib.contextmanager
def answering(path: Path | str) -> Iterator[None]:
    """A block in which errors of a store become Unanswered, one line with the address.

    FileNotFoundError and FileExistsError pass unchanged, and so do all errors about a local path.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except Exception as error:
        if not is_remote(path) or not (isinstance(error, OSError) or _package(error) in PACKAGES):
            raise
        raise Unanswered(f"{path}: the object store does not answer, or refuses: {_reason(error)}") from error


def _package(error: Exception) -> str:
    return type(error).__module__.partition(".")[0]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    code = getattr(error, "code", None)
    return (f"{code} {text}" if code and str(code) not in text else text)[:200]


# ---------------------------------------------------------------- the same for both


def absolute(path: Path | str) -> str:
    """A local path made absolute. An address stays as it is."""
    return str(path) if is_remote(path) else os.path.abspath(path)


def stat(path: Path | str) -> Stat:
    """The `Stat` of a file. Raises OSError if it is missing, ValueError if a store does not
    answer."""
    if not is_remote(path):
        found = os.stat(path)
        return Stat(found.st_size, found.st_mtime_ns)
    with answering(path):
        return _stat(of(path).info(str(path)))


def _stat(entry: dict[str, Any]) -> Stat:
    generation = (
        entry.get("generation") or entry.get("VersionId") or 0
    )  # Google's generations are microseconds since 1970
    if str(generation).isdecimal() and int(generation):
        return Stat(int(entry["size"]), 1000 * int(generation))
    changed = entry.get("LastModified") or entry.get("mtime")
    return Stat(int(entry["size"]), int(changed.timestamp() * 1e9) if changed else 0)


def matches(option: str, pattern: str) -> list[Path]:
    """The files that match a pattern, sorted; ** matches folders at any depth.

    Raises ValueError if no file matches.
    """
    if is_remote(pattern):
        scheme = pattern.partition("://")[0]
        with answering(pattern):
            entries = of(pattern).glob(pattern, detail=True)
        found = [remote(f"{scheme}://{name}") for name, entry in sorted(entries.items()) if entry["type"] == "file"]
    else:
        names = glob.glob(str(expanded(option, pattern)), recursive=True)
        found = [Path(name) for name in sorted(names) if os.path.isfile(name)]
    if not found:
        raise ValueError(f"{option}: {pattern!r} matches no file")
    return found


def below(folder: Path) -> dict[str, Stat]:
    """{relative path: stat} of all files below a remote folder, at any depth.

    It is empty if there are none.
    """
    with answering(folder):
        found = of(folder).find(str(folder), detail=True)
    start = len(str(folder).partition("://")[2].rstrip("/")) + 1
    return {name[start:]: _stat(entry) for name, entry in sorted(found.items()) if name[start:]}


def opened(path: Path | str) -> BinaryIO:
    """The file, open for binary reading and seeking. A file in a bucket is read block by block."""
    if not is_remote(path):
        return open(path, "rb")  # the caller closes it
    with answering(path):
        return io.BufferedReader(_Remote(path), BLOCK)


def read(path: Path | str) -> bytes:
    """The content of a file, local or in a bucket."""
    if not is_remote(path):
        return Path(path).read_bytes()
    with answering(path):
        return of(path).cat_file(str(path))


def write(path: Path | str, content: bytes, *, new: bool = False) -> None:
    """Writes a file in a bucket atomically. With `new`, raises FileExistsError if the file
    exists."""
    with answering(path):
        of(path).pipe_file(str(path), content, mode="create" if new else "overwrite")


def upload(path: Path, address: str) -> None:
    """Copies a local file of any size to a bucket, where it appears atomically."""
    with answering(address):
        of(address).put_file(str(path), address)


def md5(entry: dict[str, Any]) -> str:
    """The MD5 in hexadecimal that a store reports for a file; "" if it reports none."""
    return base64.b64decode(entry.get("md5Hash") or "").hex()


class _Remote(io.RawIOBase):
    """A file in a bucket as a raw binary stream."""

    def __init__(self, path: Path | str):
        self._path, self._file = path, of(path).open(str(path), "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with answering(self._path):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()
