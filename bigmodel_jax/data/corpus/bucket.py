"""A prepared corpus in a bucket: made in a copy on this machine, then uploaded with its manifest last.

An object store has no rename, so the manifest says that a corpus is whole: a folder without one is half uploaded.
"""

import hashlib
from pathlib import Path
from typing import Any

from bigmodel_jax.core import files, paths
from bigmodel_jax.data.corpus.folder import MANIFEST, parsed
from bigmodel_jax.data.sources.array_record_files import SUFFIX


def fetched(address: str, key: str, here: Path) -> bool:
    """Whether the bucket holds the whole corpus of the job `key`, whose manifest, card and page are then in `here`.

    ValueError, one line, for a folder with another corpus, and for a store that does not answer.
    """
    found = paths.below(paths.remote(address))
    if MANIFEST not in found:
        return False
    if parsed(paths.read(f"{address}/{MANIFEST}"), address).get("key") != key:
        raise ValueError(f"--output {address} holds another corpus; delete it, or give another folder")
    here.mkdir(parents=True, exist_ok=True)
    for name in sorted(name for name in found if not name.endswith(SUFFIX)):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        files.replace(here / name, paths.read(f"{address}/{name}"))
    return True


def upload(here: Path, address: str) -> None:
    """Uploads what the bucket does not hold yet of the corpus in `here`; a killed upload goes on where it was.

    ValueError, one line, where the bucket's folder holds a file that is none of the corpus's: a pattern such as
    train-*.array_record would read it, too.
    """
    names = [str(p.relative_to(here)) for p in sorted(here.rglob("*")) if p.is_file() and p.name != MANIFEST]
    with paths.answering(address):
        found = paths.of(address).find(address, detail=True)
    there = {entry["name"].removeprefix(address.removeprefix("gs://") + "/"): entry for entry in found.values()}
    if strange := sorted(there.keys() - {*names, MANIFEST}):
        raise ValueError(
            f"--output {address} holds {strange[0]}, which is not the corpus's; delete it, or give another folder"
        )
    for name in [*names, MANIFEST]:
        if not _is_there(here / name, there.get(name)):
            paths.upload(here / name, f"{address}/{name}")


def _is_there(path: Path, entry: dict[str, Any] | None) -> bool:
    """Whether `entry`, what the store says of an object, is the file's content."""
    if entry is None or entry["size"] != path.stat().st_size:
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == paths.md5(entry)
