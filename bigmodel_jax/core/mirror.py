"""A run's folder in a bucket, worked on in a copy on this machine.

An object store has no appends, no locks and no rename, and a run's log, metrics and events need them. So a run of
gs://BUCKET/RUN works in `<cache>/gs/BUCKET/RUN`: `pull` makes that folder what the bucket holds, and `push` uploads
whole every file that has changed since. Orbax writes what is large to the bucket itself, `origin` says where.
"""

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from bigmodel_jax.core import files, paths

LARGE = ("checkpoints", "constants")  # Orbax's, which are in the bucket alone
WRITTEN = (*LARGE, "tensorboard", "plots")  # a start reads none of them
HOLDER = "holder.json"  # the holder's, on each side
PUSH_SECONDS = 30.0

log = logging.getLogger(__name__)
_sent: dict[Path, paths.Stat] = {}  # the files here that the bucket holds as they are
_pushing = threading.Lock()


def root() -> Path:
    """Where the copies lie: below $BIGMODEL_CACHE, or ~/.cache/bigmodel_jax."""
    place = os.environ.get("BIGMODEL_CACHE") or "~/.cache/bigmodel_jax"
    # ~ of an unknown user stays as it is: an error's message is made by these functions, too.
    return Path(os.path.expanduser(place)).resolve() / "gs"


def origin(path: Path) -> Path:
    """The place in its bucket of a path below `root()`; of any other path: that path, absolute."""
    if paths.is_remote(path):
        return path
    path = path.absolute()
    return paths.remote(address(path)) if path.is_relative_to(root()) else path


def address(path: Path) -> str:
    """gs://BUCKET/RUN/... of a path below `root()`, and any other path as it is: what a user is shown."""
    return f"gs://{path.relative_to(root())}" if path.is_relative_to(root()) else str(path)


def shown(text: str) -> str:
    """`text` with the addresses of the paths below `root()` that stand in it."""
    return text.replace(f"{root()}/", "gs://")


def folder(source: str) -> Path:
    """Where a run's folder, given as a path or an address, is read here; nothing is fetched."""
    scheme, found, rest = source.partition("://")
    return root() / rest.strip("/") if found and scheme == "gs" else Path(source)


@functools.cache
def fetched(source: str) -> Path:
    """As `folder`, with what the bucket holds of it when a process asks first."""
    here = folder(source)
    if here.is_relative_to(root()):
        pull(here)
    return here


def pull(here: Path) -> None:
    """Makes a copy what the bucket holds, but for what is large and what no start reads.

    A file that goes on where the bucket's ends stays as it is: it is what a run of this machine wrote before it was
    killed. A copy in which another process trains stays as it is. ValueError, one line, where the store does not answer.
    """
    if _in_use(here):
        return
    there = _listed(here)
    for path in _files(here) - {here / name for name in there}:
        path.unlink(missing_ok=True)
    for name, entry in there.items():
        path = here / name
        if not _goes_on(path, entry):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.replace(path, paths.read(f"gs://{entry['name']}"))
        if (stat := paths.stat(path)).size == entry["size"]:
            _sent[path] = stat
    if there or _holds_saves(here):
        here.mkdir(parents=True, exist_ok=True)


def _listed(here: Path) -> dict[str, dict]:
    """{name: what the store says of it}"""
    store, start = paths.of(address(here)), len(address(here).removeprefix("gs://")) + 1
    found: list[dict] = []
    with paths.answering(address(here)):
        try:
            for entry in store.ls(address(here), detail=True):
                if entry["type"] == "file":
                    found.append(entry)
                elif entry["name"][start:].strip("/") not in WRITTEN:
                    found += store.find(entry["name"], detail=True).values()
        except FileNotFoundError:
            return {}
    return {e["name"][start:]: e for e in found if e["name"][start:] not in ("", HOLDER) and e["type"] == "file"}


def _holds_saves(here: Path) -> bool:
    with paths.answering(address(here)):
        return origin(here / LARGE[0]).is_dir()


def _in_use(here: Path) -> bool:
    """Whether a process of this machine holds the run, whose copy is then ahead of the bucket."""
    if not (here / HOLDER).is_file():
        return False
    with open(here / HOLDER, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _files(here: Path) -> set[Path]:
    """The files of a copy that are the bucket's as well."""
    return {p for p in here.rglob("*") if p.is_file() and p != here / HOLDER and ".partial-" not in p.name}


def _goes_on(path: Path, entry: dict) -> bool:
    """Whether a file here begins with all that the bucket holds of it."""
    if not path.is_file() or path.stat().st_size < entry["size"]:
        return False
    with open(path, "rb") as file:
        return hashlib.md5(file.read(entry["size"])).hexdigest() == paths.md5(entry)


def push(here: Path, only: Sequence[str] = ()) -> None:
    """Uploads the files of a copy that have changed, and deletes those that are gone; nothing for any other folder.

    only: the first parts of their names. ValueError, one line, where the store does not answer.
    """
    here = here.absolute()
    if not here.is_relative_to(root()):
        return
    with _pushing:
        found = sorted(p for p in _files(here) if not only or p.relative_to(here).parts[0] in only)
        changed = {path: stat for path in found if _sent.get(path) != (stat := paths.stat(path))}
        contents = {path: path.read_bytes() for path in changed}
        # metrics.crc32 goes after metrics.jsonl, and was read before it: the bucket never holds a sum without its line.
        for path, content in reversed(contents.items()):
            paths.write(address(path), content)
            _sent[path] = changed[path]
        for path in () if only else [p for p in _sent if p.is_relative_to(here) and p not in found]:
            with paths.answering(address(path)), contextlib.suppress(FileNotFoundError):
                paths.of(address(path)).rm_file(address(path))
            del _sent[path]


@contextlib.contextmanager
def kept(here: Path) -> Iterator[None]:
    """A block in which a copy is uploaded every half minute, and at its end; nothing for any other folder.

    What fails meanwhile is said once in the log, and is tried again. At the end it is a ValueError, one line, unless
    another error ends the block.
    """
    if not here.absolute().is_relative_to(root()):
        yield
        return
    ended, failed = threading.Event(), threading.Event()
    pushes = threading.Thread(target=_pushes, args=(here, ended, failed), name="mirror", daemon=True)
    pushes.start()
    try:
        yield
    except BaseException as error:
        ended.set()
        if not failed.is_set() and not isinstance(error, paths.Unanswered):
            with contextlib.suppress(ValueError, OSError):  # the block's own error is the one to be said
                push(here)
        raise
    ended.set()
    push(here)


def _pushes(here: Path, ended: threading.Event, failed: threading.Event) -> None:
    while not ended.wait(PUSH_SECONDS):
        try:
            push(here)
            failed.clear()
        except (ValueError, OSError) as error:
            if not failed.is_set() and not ended.is_set():
                log.warning("%s; it is tried again, and the run's files stay in %s", error, here)
            failed.set()
