"""Where files lie: on this machine, read by pathlib, or in a bucket, read by etils.epath.

`gs://` needs the package gcsfs (the extra `gcs`), `s3://` needs s3fs. An address is checked before it is used: the
package, the bucket and the credentials. What a store answers beside a file becomes one line with the address.
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

# epath takes TensorFlow's file system where that is installed, whose errors and listings are other ones.
os.environ.setdefault("EPATH_USE_TF", "false")
# gcsfs otherwise asks a second service over gRPC of which kind a bucket is, at a host that no emulator serves.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

# Whose errors are a store's: gcsfs and s3fs let some through of what they are made of.
PACKAGES = ("gcsfs", "aiohttp", "google", "requests", "s3fs", "botocore", "aiobotocore", "fsspec", "asyncio")
BLOCK = 1 << 20  # bytes that one read of a file in a bucket asks for


class Store(NamedTuple):
    """What is known of an object store, by the scheme of its addresses."""

    protocol: str  # fsspec's name of it
    package: str
    install: str
    login: str


STORES = {
    "gs": Store("gcs", "gcsfs", "uv sync --extra gcs", "gcloud auth application-default login"),
    "s3": Store("s3", "s3fs", "docs/data.md shows an environment with s3fs", "aws configure"),
}
# One object is asked for: a role that may only read objects cannot read what the bucket says of itself.
PROBES = {
    "gs": lambda files, bucket: files.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True),
    "s3": lambda files, bucket: files.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1),
}


class Unanswered(ValueError):
    """A store does not answer, or refuses: one line with the address."""


class Stat(NamedTuple):
    """Bytes of a file, and a number that changes with its content: its time in ns, or its generation in a bucket."""

    size: int
    changed: int


# ---------------------------------------------------------------- what a user gives


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


def check(option: str, path: str, schemes: Sequence[str]) -> None:
    """ValueError, one line, for an address of none of `schemes`, or one whose bucket cannot be read; a path is right."""
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
    """What keeps this process from a bucket; "" where it can be read."""
    store = STORES[scheme]
    try:
        PROBES[scheme](files(scheme), bucket)
    except ModuleNotFoundError:
        return f"{scheme}:// needs the package {store.package}: {store.install}"
    except FileNotFoundError:
        return f"there is no bucket {bucket!r}"
    except Exception as error:  # each package has classes of its own
        refused = isinstance(error, PermissionError) or re.search(r"\b40[13]\b|Forbidden|credential", _reason(error))
        way = f"; credentials are missing or do not suffice: {store.login}" if refused else ""
        return f"the bucket cannot be read ({_reason(error)}){way}"
    return ""


# ---------------------------------------------------------------- the store


@functools.cache
def files(scheme: str) -> Any:
    """fsspec's file system of a scheme; ModuleNotFoundError where its package is missing."""
    import fsspec

    store = STORES[scheme]
    # A listing must show what Orbax has written meanwhile, which goes past fsspec.
    fsspec.config.conf.setdefault(store.protocol, {})["use_listings_cache"] = False
    logging.getLogger(store.package).addFilter(lambda record: False)  # it prints tracebacks of what it raises
    try:
        return fsspec.filesystem(store.protocol)
    except ImportError as error:
        raise ModuleNotFoundError(store.package) from error


def is_remote(path: Path | str) -> bool:
    return "://" in str(path)


def remote(address: str) -> Path:
    """The epath of an address."""
    from etils import epath

    return epath.Path(address)


def of(path: Path | str) -> Any:
    """fsspec's file system in which a remote path lies."""
    return files(str(path).partition("://")[0])


@contextlib.contextmanager
def answering(path: Path | str) -> Iterator[None]:
    """What a store raises becomes Unanswered, one line with the address; what is not there, or there already, stays.

    Nothing where the path is one of this machine.
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
    return str(path) if is_remote(path) else os.path.abspath(path)


def stat(path: Path | str) -> Stat:
    """OSError where there is no such file, ValueError where a store does not answer."""
    if not is_remote(path):
        found = os.stat(path)
        return Stat(found.st_size, found.st_mtime_ns)
    with answering(path):
        return _stat(of(path).info(str(path)))


def _stat(entry: dict[str, Any]) -> Stat:
    generation = entry.get("generation") or entry.get("VersionId") or 0  # of Google: microseconds since 1970
    if str(generation).isdecimal() and int(generation):
        return Stat(int(entry["size"]), 1000 * int(generation))
    changed = entry.get("LastModified") or entry.get("mtime")
    return Stat(int(entry["size"]), int(changed.timestamp() * 1e9) if changed else 0)


def matches(option: str, pattern: str) -> list[Path]:
    """The files that match a pattern, sorted; ** stands for folders at any depth. ValueError where there is none."""
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
    """{path relative to a remote folder: its stat} of all files at any depth; empty where there is none."""
    with answering(folder):
        found = of(folder).find(str(folder), detail=True)
    start = len(str(folder).partition("://")[2].rstrip("/")) + 1
    return {name[start:]: _stat(entry) for name, entry in sorted(found.items()) if name[start:]}


def opened(path: Path | str) -> BinaryIO:
    """The file, open for reading, with its position; one in a bucket is read in blocks as they are asked for."""
    if not is_remote(path):
        return open(path, "rb")  # the caller closes it
    with answering(path):
        return io.BufferedReader(_Remote(path), BLOCK)


def read(path: Path | str) -> bytes:
    """A file's content."""
    if not is_remote(path):
        return Path(path).read_bytes()
    with answering(path):
        return of(path).cat_file(str(path))


def write(path: Path | str, content: bytes, *, new: bool = False) -> None:
    """Writes a file in a bucket, which appears whole or not at all. new: FileExistsError where it is there already."""
    with answering(path):
        of(path).pipe_file(str(path), content, mode="create" if new else "overwrite")


def upload(path: Path, address: str) -> None:
    """Copies a file of this machine, of any size, to a bucket, where it appears whole or not at all."""
    with answering(address):
        of(address).put_file(str(path), address)


def md5(entry: dict[str, Any]) -> str:
    """The MD5 of a file that the store tells beside it, in hexadecimal; "" where it tells none."""
    return base64.b64decode(entry.get("md5Hash") or "").hex()


class _Remote(io.RawIOBase):
    """The bytes of a file in a bucket."""

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
