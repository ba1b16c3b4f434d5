"""The local copy in which a run of a bucket works.

An object store has no appends, locks or renames, but a run's log, metrics and events need them. So
a run of gs://BUCKET/RUN works in `<cache>/gs/BUCKET/RUN`. `pull` makes that folder equal to the
bucket, and `push` uploads every file that has changed since. Orbax writes large arrays to the
bucket directly, at the address that `origin` gives.
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

LARGE = ("checkpoints", "constants")  # folders that Orbax writes; they exist only in the bucket
WRITTEN = (*LARGE, "tensorboard", "plots")  # folders that a starting run does not read
HOLDER = "holder.json"  # names the process that holds the run; the bucket and the copy have one each
PUSH_SECONDS = 30.0  # time between two uploads

log = logging.getLogger(__name__)
_sent: dict[Path, paths.Stat] = {}  # local files whose content the bucket has, as of these stats
_pushing = threading.Lock()


def root() -> Path:
    """The folder of all copies, below $BIGMODEL_CACHE or ~/.cache/bigmodel_jax."""
    place = os.environ.get("BIGMODEL_CACHE") or "~/.cache/bigmodel_jax"
    # `expanduser` does not raise for an unknown user, but leaves ~ as it is. Error messages are
    # made with this path, so an exception here would prevent them.
    return Path(os.path.expanduser(place)).resolve() / "gs"


def origin(path: Path) -> Path:
    """The address in the bucket of a path below `root()`. Any other path becomes absolute."""
    if paths.is_remote(path):
        return path
    path = path.absolute()
    return paths.remote(address(path)) if path.is_relative_to(root()) else path


def address(path: Path) -> str:
    """The text gs://BUCKET/RUN/... for a path below `root()`, else the path: the form shown to
    users."""
    return f"gs://{path.relative_to(root())}" if path.is_relative_to(root()) else str(path)


def shown(text: str) -> str:
    """`text` with each path below `root()` replaced by its address."""
    return text.replace(f"{root()}/", "gs://")


def folder(source: str) -> Path:
    """The local folder of a run given as a path or an address. Nothing is downloaded."""
    scheme, found, rest = source.partition("://")
    # Only gs:// holds runs; s3:// is read as a source of data.
    return root() / rest.strip("/") if found and scheme == "gs" else Path(source)


@functools.cache
def fetched(source: str) -> Path:
    """Like `folder`, but downloads the bucket's files when a process first asks for them."""
    here = folder(source)
    if here.is_relative_to(root()):
        pull(here)
    return here


def pull(here: Path) -> None:
    """Makes a copy equal to the bucket, except for large arrays and folders that a start does not
    read.

    A local file that begins with the bucket's content and is longer stays: a run of this machine
    wrote it before it was killed. A copy in which another process trains stays, too. Raises
    ValueError, one line, if the store does not answer.
    """
    if _in_use(here):
        return
    there = _listed(here)
    # Files that the bucket does not have are deleted, so that the copy equals the bucket.
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
    """{relative name: entry} of the files in the bucket that `pull` copies; entry: the store's
    record."""
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
    """Whether a process of this machine holds the run. Its copy is then newer than the bucket."""
    if not (here / HOLDER).is_file():
        return False
    with open(here / HOLDER, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _files(here: Path) -> set[Path]:
    """The files of a copy that the bucket has, too: all except the holder and temporary files."""
    return {p for p in here.rglob("*") if p.is_file() and p != here / HOLDER and ".partial-" not in p.name}


def _goes_on(path: Path, entry: dict) -> bool:
    """Whether a local file begins with the whole content of the bucket's file."""
    if not path.is_file() or path.stat().st_size < entry["size"]:
        return False
    with open(path, "rb") as file:
        return hashlib.md5(file.read(entry["size"])).hexdigest() == paths.md5(entry)


def push(here: Path, only: Sequence[str] = ()) -> None:
    """Uploads the changed files of a copy and deletes removed ones.

    Ignores folders that are not copies of a bucket's.

    only: upload only files below these top folders or of these names. Raises ValueError, one line,
    if the store does not answer.
    """
    here = here.absolute()
    if not here.is_relative_to(root()):
        return
    with _pushing:
        found = sorted(p for p in _files(here) if not only or p.relative_to(here).parts[0] in only)
        changed = {path: stat for path in found if _sent.get(path) != (stat := paths.stat(path))}
        contents = {path: path.read_bytes() for path in changed}
        # metrics.crc32 is read before metrics.jsonl and uploaded after it, so the bucket never
        # holds a checksum without its line.
        for path, content in reversed(contents.items()):
            paths.write(address(path), content)
            _sent[path] = changed[path]
        for path in () if only else [p for p in _sent if p.is_relative_to(here) and p not in found]:
            with paths.answering(address(path)), contextlib.suppress(FileNotFoundError):
                paths.of(address(path)).rm_file(address(path))
            del _sent[path]


@contextlib.contextmanager
def kept(here: Path) -> Iterator[None]:
    """A block during which a copy is uploaded every half minute and at the end.

    Ignores folders that are not copies of a bucket's.

    A failed upload is logged once and tried again. A failure at the end raises ValueError, one
    line, unless another error has ended the block.
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
            with contextlib.suppress(ValueError, OSError):  # the block's own error is more useful
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
