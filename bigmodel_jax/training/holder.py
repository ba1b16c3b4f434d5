"""Ensures that one process at a time trains in a run's folder, by a file `holder.json`.

Two signs show that the holder lives: a lock and a beat. The kernel frees the lock on the file when
the process ends. Other hosts do not see the lock on some shared file systems, but they see the
beat, a count that the holder raises every few seconds. A new process takes the folder if it gets
the lock and no beat comes. If the run lies in a bucket, this file lies in the local copy, and
bucket_hold.py holds the folder in the bucket.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path

from bigmodel_jax.core import paths
from bigmodel_jax.training.bucket_hold import BucketHold

FILE = "holder.json"
BEAT_SECONDS = 5.0
SILENT_SECONDS = 20.0  # a holder on another host without a beat for so long counts as dead
LENGTH = 512  # bytes of the file
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # errors of a file system without locks


class Holder:
    """The hold on a run's folder. The end of this context manager releases it."""

    def __init__(self, run_dir: Path):
        self._path, self._file = run_dir / FILE, None
        self._name = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now(), "id": secrets.token_hex(8)}
        self._released, self._bucket = threading.Event(), BucketHold(self._path, self._name)

    def __enter__(self) -> "Holder":
        return self

    def take(self) -> None:
        """Takes the existing folder. Does nothing if this process has it already.

        Raises a one-line ValueError that names the process in the folder, or an OSError that names
        the file.
        """
        if self._file is not None:
            return
        self._file = _take(self._path)
        if living := self._bucket.take(dead=_read(self._path)):
            raise ValueError(_in_use(self._path, living))
        self._beat(0)
        threading.Thread(target=self._beats, name="holder", daemon=True).start()

    def check(self) -> None:
        """Raises ValueError if another process has taken the folder, as may happen after a long
        stop.
        """
        if self._file is None:
            return
        found = {} if self._ours() else _read(self._path) or {"id": ""}
        if found := found or self._bucket.other():
            run_dir = str(self._path.parent)
            raise ValueError(
                f"run_dir = {run_dir!r}: {_text(found)} has taken the run; this process stops without a save"
            )

    def __exit__(self, kind, *exception) -> None:
        self._released.set()
        if self._file is None:
            return
        # A bucket that does not answer would only delay the exit, and the record there goes stale
        # by itself.
        if kind is not paths.Unanswered:
            self._bucket.release()
        if self._ours():
            self._path.unlink(missing_ok=True)
        os.close(self._file)

    def _ours(self) -> bool:
        return _read(self._path).get("id") == self._name["id"]

    def _beats(self) -> None:
        count = 0
        while not self._released.wait(BEAT_SECONDS) and self._ours():
            count += 1
            with contextlib.suppress(OSError, ValueError):  # a full disk or an unreachable store must not end the beat
                self._beat(count)
                self._bucket.beat(count)

    def _beat(self, count: int) -> None:
        # Each beat is one write of the same length, so that a reader on another host never sees
        # parts of two beats.
        os.pwrite(self._file, json.dumps({**self._name, "beat": count}).ljust(LENGTH).encode(), 0)


def _take(path: Path) -> int:
    """Opens and locks the file, which still has the previous holder's content."""
    while True:
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        try:
            _refuse_living(path, locked=_lock(number))
            if _same(path, number):  # the previous holder may have deleted the file in between
                return number
        except BaseException:
            os.close(number)
            raise
        os.close(number)


def _lock(number: int) -> bool | None:
    """True if this process gets the lock, False if another has it, None without locks."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _refuse_living(path: Path, locked: bool | None) -> None:
    found = _read(path)
    here = found.get("host") == socket.gethostname()
    # If this process gets the lock, an earlier holder on this host has ended. Only the beat shows
    # whether a holder on another host lives.
    if locked is False or (found and not (here and locked) and _beating(path, found)):
        raise ValueError(_in_use(path, found))


def _in_use(path: Path, found: dict) -> str:
    return (
        f"run_dir = {str(path.parent)!r} is in use: {_text(found)} trains there; "
        f"wait for its end, stop it, or give another --run_dir"
    )


def _beating(path: Path, found: dict) -> bool:
    """Whether the holder's count rises within SILENT_SECONDS."""
    end = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < end:
        now = _read(path)
        if not now:
            return False
        if now != found:
            return True
        time.sleep(BEAT_SECONDS / 5)
    return False


def _same(path: Path, number: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(number))
    except FileNotFoundError:
        return False


def _read(path: Path) -> dict:
    """The content of the file. It is empty if it is missing or incomplete."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(found: dict) -> str:
    if not {"host", "pid", "since"} <= found.keys():
        return "another process"
    return f"process {found['pid']} on {found['host']}, started {found['since']},"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
