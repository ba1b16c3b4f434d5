"""Record what a run ran on, so that its figures can be explained later."""

import collections
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import jax

from bigmodel_jax.core import files, processes

ENVIRONMENT_FILE = "environment.json"
PACKAGES = (
    "bigmodel-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "numpy",
    "tokenizers",
    "safetensors",
)
# Prefixes of environment variables that change what a run computes or how fast. No other variables
# are recorded.
PREFIXES = ("JAX_", "XLA_", "LIBTPU_", "NCCL_", "GLIBC_", "MALLOC_", "SLURM_JOB_")


def environment() -> dict:
    """Versions, machine, devices, git revision, command line and date, as plain JSON."""
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    return {
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "devices": [f"{count} x {kind}" for kind, count in kinds.items()],
        "process_count": jax.process_count(),
        "cpu": cpu_model(),
        # A container or a batch job may use fewer cores than the machine has.
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "git": git_revision(Path(__file__).resolve().parents[2]),
        "packages": versions(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(PREFIXES)},
    }


def _program() -> list[str]:
    """The program's name without its folder, since the folder may be private."""
    program = Path(sys.argv[0])
    return ["-m", "bigmodel_jax"] if program.parts[-2:] == ("bigmodel_jax", "__main__.py") else [program.name]


def versions() -> dict[str, str]:
    """Versions of the packages that affect what a run computes."""
    return {name: version for name in PACKAGES if (version := _version(name))}


def write_environment(run_dir: Path, **facts: float | str) -> None:
    """Write environment.json from process 0.

    facts: figures that only the run knows. The page shows the facts that are called parameters,
    tokens_per_step and peak_source.
    """
    if not processes.first():
        return
    path = Path(run_dir) / ENVIRONMENT_FILE
    files.replace(path, json.dumps(environment() | facts, indent=2) + "\n")


def cpu_model() -> str:
    """The processor's name as the operating system reports it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_revision(root: Path) -> str | None:
    """Commit of the checkout at `root`, with "+dirty" if tracked files differ.

    None if `root` is not a checkout.
    """
    if not (root / ".git").exists():  # an installed package may lie below another repository
        return None
    git = ["git", "-C", str(root)]
    try:
        revision = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        # Untracked files do not count: a checkout often holds notes and outputs.
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return revision + ("+dirty" if changes.stdout else "")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
