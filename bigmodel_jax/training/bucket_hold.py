"""Ensures that one process at a time trains in a run's folder in a bucket, by an object
`holder.json`.

A bucket has no locks. The holder creates the object, which fails if another process was first, and
rewrites it every few seconds with a rising count. A new process takes over a folder if its count
stands still. A holder that finds another name in the object stops without a save.
"""

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any

from bigmodel_jax.core import mirror, paths

BEATS = 2  # the count is written every this many local beats, that is every 10 s
SILENT_SECONDS = 40.0  # a holder whose count has stood still for so long counts as dead
LOOK_SECONDS = 2.0

log = logging.getLogger("bigmodel_jax")


class BucketHold:
    """The hold on a run's folder in a bucket. `path` lies in its local copy.

    If the folder is not in a bucket, all methods do nothing.
    """

    def __init__(self, path: Path, name: dict[str, Any]):
        self._path, self._name, self._taken = mirror.origin(path), name, False

    def take(self, dead: dict[str, Any]) -> dict[str, Any]:
        """Takes the folder. Returns the living holder, or {} if this process holds it now.

        `dead` is a holder that has ended, as the lock on this machine has shown.
        """
        if not paths.is_remote(self._path):
            return {}
        found = self._read()
        # A holder that died on this machine need not be watched: the kernel has freed its lock.
        if found and found.get("id") != dead.get("id") and self._counts(found):
            return found
        try:
            with paths.answering(self._path):
                self._path.unlink(missing_ok=True)
            # `new` fails if another process has created the object in between.
            paths.write(self._path, self._text(0), new=True)
        except FileExistsError:
            return self._read() or {"id": ""}
        self._taken = True
        return {}

    def other(self) -> dict[str, Any]:
        """The process that holds the folder instead of this one; {} if there is none."""
        found = self._read() if self._taken else self._name
        return {} if found.get("id") == self._name["id"] else found or {"id": ""}

    def beat(self, count: int) -> None:
        """Writes the count. The holder on this machine calls this at each of its own beats."""
        if self._taken and count % BEATS == 0 and not self.other():
            paths.write(self._path, self._text(count))

    def release(self) -> None:
        """Deletes the object. If that fails, the next process will take the holder for dead."""
        with contextlib.suppress(ValueError, FileNotFoundError):
            if self._taken and not self.other():
                self._path.unlink()

    def _text(self, count: int) -> bytes:
        return json.dumps({**self._name, "beat": count}).encode()

    def _counts(self, found: dict[str, Any]) -> bool:
        """Whether the holder's count rises within SILENT_SECONDS."""
        log.info("%s: %s is watched for a sign of life", self._path, found.get("id"))
        end = time.monotonic() + SILENT_SECONDS
        while time.monotonic() < end:
            now = self._read()
            if now != found:
                return bool(now)
            time.sleep(LOOK_SECONDS)
        return False

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(paths.read(self._path))
        except FileNotFoundError:
            return {}
        except json.JSONDecodeError:
            return {"id": ""}
        return found if isinstance(found, dict) else {"id": ""}
