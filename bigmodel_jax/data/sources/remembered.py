"""Digests of raw files, kept in the cache, so that a second start need not read gigabytes again.

An entry is valid while the file's path, size and modification time stay the same.
"""

import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from bigmodel_jax.core import files, paths
from bigmodel_jax.data import cache

FORMAT = 1  # raise it when the cached files change
LEAST = 8_000_000  # below this many bytes in all, reading the files is as fast as a look-up of their digests

log = logging.getLogger(__name__)
# {name: [size, modification time in ns, SHA-256]} of the files in one folder
Known = dict[str, list]


def digests(given: list[Path], root: Path) -> list[str]:
    """Return the SHA-256 of each file's content. Raises OSError for an unreadable file."""
    if sum(paths.stat(path).size for path in given) < LEAST:
        return [cache.file_digest(path) for path in given]
    found = {}
    for folder, names in _by_folder(given).items():
        before = _load(root, folder)
        for name in names.keys() & before.keys():
            size, time, digest = before[name]
            cache.know_digest(os.path.join(folder, name), size, time, digest)
        now = {name: _entry(path, cache.file_digest) for name, path in names.items()}
        _save(root, folder, before, now)
        found |= {path: now[name][2] for name, path in names.items()}
    return [found[path] for path in given]


def changed(given: list[Path], root: Path) -> tuple[list[str], int]:
    """Read all files again. Return (a line for each file that has changed, the number of files that
    were remembered).

    A file has changed if its content differs from the remembered one. Then the new content is
    remembered.
    """
    found, known = [], 0
    for folder, names in _by_folder(given).items():
        before, now = _load(root, folder), {}
        for name, path in names.items():
            now[name] = _entry(path, cache.sha256)
            if name in before and before[name][2] != now[name][2]:
                found.append(f"{path} has other content: {_difference(before[name], now[name])}")
            cache.know_digest(os.path.join(folder, name), *now[name])
        known += len(names.keys() & before.keys())
        _save(root, folder, before, now)
    return found, known


def _difference(before: list, now: list) -> str:
    same = ", though its size and time of change are the same" if before[:2] == now[:2] else ""
    return f"{before[0]:,} bytes, sha256 {before[2][:12]}, now {now[0]:,} bytes, sha256 {now[2][:12]}{same}"


def _by_folder(given: Iterable[Path]) -> dict[str, dict[str, Path]]:
    """Return {folder: {file name: the given path}}."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in given:
        folder, name = os.path.split(paths.absolute(path))
        found[folder][name] = path
    return found


def _entry(path: Path, digest: Callable[[Path], str]) -> list:
    # A file that changes while it is read must not be known by its new size and time.
    return [*paths.stat(path), digest(path)]


def _file(root: Path, folder: str) -> Path:
    return root / f"digests-{FORMAT}" / f"{cache.key(folder)}.json"


def _load(root: Path, folder: str) -> Known:
    """Return the remembered digests. A damaged file counts as empty."""
    try:
        found = json.loads(_file(root, folder).read_bytes())
        return {str(name): [int(size), int(time), str(digest)] for name, (size, time, digest) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _save(root: Path, folder: str, before: Known, now: Known) -> None:
    # A file that changed just now could change again without another modification time.
    settled = {name: entry for name, entry in now.items() if cache.settled(entry[1])}
    if settled.items() <= before.items():
        return
    path = _file(root, folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, json.dumps(before | settled))
    except OSError as error:  # the run can continue with a cache that is not writable
        log.warning("digests of the files in %s are not remembered: %s", folder, error)
