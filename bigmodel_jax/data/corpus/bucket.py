"""A prepared corpus in a bucket: a local copy is prepared, then uploaded with the manifest last.

An object store cannot rename a folder. So the manifest marks a corpus as complete, and a folder
without a manifest is an unfinished upload.
"""

import hashlib
from pathlib import Path
from typing import Any

from bigmodel_jax.core import files, paths
from bigmodel_jax.data.corpus.folder import MANIFEST, parsed
from bigmodel_jax.data.sources.array_record_files import SUFFIX


def fetched(address: str, key: str, here: Path) -> bool:
    """Tell whether the bucket holds the whole corpus of the job `key`, and fetch its small files.

    The manifest, the data card and the page are copied into `here`. The shards stay in the bucket.
    Raises a one-line ValueError where the folder holds another corpus or the store does not answer.
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
    """Upload the files of the corpus in `here` that the bucket lacks. A killed upload can be
    resumed.

    Raises a one-line ValueError where the bucket's folder holds a file of something else, because a
    pattern such as train-*.array_record would read that file too.
    """
    names = [str(p.relative_to(here)) for p in sorted(here.rglob("*")) if p.is_file() and p.name != MANIFEST]
    with paths.answering(address):
        found = paths.of(address).find(address, detail=True)
    # The store lists objects by bucket and path, without the scheme gs://.
    there = {entry["name"].removeprefix(address.removeprefix("gs://") + "/"): entry for entry in found.values()}
    if strange := sorted(there.keys() - {*names, MANIFEST}):
        raise ValueError(
            f"--output {address} holds {strange[0]}, which is not the corpus's; delete it, or give another folder"
        )
    # The manifest goes last, because its presence says that the corpus is complete.
    for name in [*names, MANIFEST]:
        if not _is_there(here / name, there.get(name)):
            paths.upload(here / name, f"{address}/{name}")


def _is_there(path: Path, entry: dict[str, Any] | None) -> bool:
    """Tell whether `entry`, the store's description of an object, matches the file's content."""
    # The size is compared first, because the digest reads the whole file.
    if entry is None or entry["size"] != path.stat().st_size:
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == paths.md5(entry)
