"""One process at a time trains in a run's folder in a bucket: the object `holder.json` there names it while it lives.

A bucket has no locks. A holder creates the object, which fails where another one was first, and writes it anew every
few seconds with a count. A new process takes the folder where that count stands still; a holder that finds another
name there stops without a save.
"""

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any

from bigmodel_jax.core import mirror, paths

BEATS = 2  # beats of the holder on this machine from one count in the bucket to the next: 10 s
SILENT_SECONDS = 40.0  # a holder that has not counted for so long is taken for dead
LOOK_SECONDS = 2.0

log = logging.getLogger("bigmodel_jax")


class BucketHold:
    """The hold on the folder in the bucket of which `path`'s folder is the copy; nothing for any other folder."""

    def __init__(self, path: Path, name: dict[str, Any]):
        self._path, self._name, self._taken = mirror.origin(path), name, False

    def take(self, dead: dict[str, Any]) -> dict[str, Any]:
        """Takes it; what lives there already, empty where this process has it now.

        dead: a holder that lives no more, as the lock on this machine has shown.
        """
        if not paths.is_remote(self._path):
            return {}
        found = self._read()
        if found and found.get("id") != dead.get("id") and self._counts(found):
            return found
        try:
            with paths.answering(self._path):
                self._path.unlink(missing_ok=True)
            paths.write(self._path, self._text(0), new=True)
        except FileExistsError:
            return self._read() or {"id": ""}
        self._taken = True
        return {}

    def other(self) -> dict[str, Any]:
        """Who holds the folder in the place of this process; empty where nobody does."""
        found = self._read() if self._taken else self._name
        return {} if found.get("id") == self._name["id"] else found or {"id": ""}

    def beat(self, count: int) -> None:
        """Called at each beat on this machine."""
        if self._taken and count % BEATS == 0 and not self.other():
            paths.write(self._path, self._text(count))

    def release(self) -> None:
        """What cannot be deleted is taken for dead by the next process."""
        with contextlib.suppress(ValueError, FileNotFoundError):
            if self._taken and not self.other():
                self._path.unlink()

    def _text(self, count: int) -> bytes:
        return json.dumps({**self._name, "beat": count}).encode()

    def _counts(self, found: dict[str, Any]) -> bool:
        """Whether the holder's count rises while this process watches."""
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
