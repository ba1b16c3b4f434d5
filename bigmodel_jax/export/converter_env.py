"""Runs converters in virtual environments of their own, because their packages conflict with ours.

uv makes each environment once, in a folder of the cache. The folder's name has a digest of the
pinned versions (export/pins/NAME.txt). A worker, which is a module of this package, runs there with
this package on its path.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bigmodel_jax
from bigmodel_jax.core import files, trust
from bigmodel_jax.data import cache

PINS = Path(__file__).parent / "pins"
MEGABYTES = {"onnx": 700, "litert": 350}  # the size of each environment on disk
# These variables would lead the converter's Python to packages or devices of this environment.
UNSET = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "JAX_PLATFORMS")
UV_ERRORS = ("error", "cause:", "x ", "×")  # beginnings of the lines in which uv names an error


def version(name: str, package: str) -> str:
    """The version of a package that the environment `name` pins."""
    lines = (PINS / f"{name}.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{package}=="))


def folder(name: str) -> Path:
    """The folder of the environment for these pins and this Python version, whether it exists or
    not.
    """
    digest = cache.key((PINS / f"{name}.txt").read_text(), sys.version_info[:2])
    return cache.root() / "converters" / f"{name}-{digest}"


def ensure(name: str) -> Path:
    """Returns the environment's folder, which uv makes if it does not exist. Raises a ValueError of
    one line where uv fails.
    """
    made = folder(name)
    if made.is_dir():
        return made
    uv = os.environ.get("UV") or shutil.which("uv")
    if not uv:
        raise ValueError(
            f"export: --format {name} needs uv, which makes an environment for the converter: pip install uv"
        )
    with cache.lock(made):
        if not made.is_dir():  # another process may have made it while this one waited for the lock
            print(
                f"export: uv makes an environment for --format {name}, once, of about {MEGABYTES[name]} MB: {made}",
                file=sys.stderr,
            )
            with files.new_folder(made) as partial:
                _make(uv, name, partial)
    return made


def commands(uv: str, name: str, target: Path) -> list[list[str]]:
    """The commands that make the environment: exactly the pinned packages, without their
    dependencies.
    """
    # uv makes the environment in a temporary folder, which is then renamed, so nothing in it may
    # name its own path.
    venv = [uv, "venv", "--no-config", "--relocatable", "--allow-existing", "--python", sys.executable, str(target)]
    # The pins name every package. Without --no-deps uv could add versions that nobody tried, and a
    # package without a wheel would need a compiler.
    install = [uv, "pip", "install", "--no-deps", "--only-binary", ":all:", "--python", str(target / "bin" / "python")]
    return [venv, [*install, "-r", str(PINS / f"{name}.txt")]]


def _make(uv: str, name: str, target: Path) -> None:
    for command in commands(uv, name, target):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
        except OSError as error:
            raise ValueError(f"export: --format {name}: uv = {uv!r} cannot be run: {error.strerror}") from error
        if done.returncode:
            raise ValueError(
                f"export: --format {name}: uv could not make the converter's environment, which needs the package index "
                f"once: {last_words(done.stderr, UV_ERRORS)}"
            )


def environment() -> dict[str, str]:
    """This process's environment variables without those that point a Python to other packages."""
    return {key: value for key, value in os.environ.items() if key not in UNSET}


def last_words(text: str, errors: tuple[str, ...] = ()) -> str:
    """One line of a process's output: the first that begins with one of `errors`, or the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if line.lower().startswith(errors)]
    return (wrong or lines[-1:] or ["it said nothing"])[0][:300]


def run(name: str, worker: str, job: dict[str, Any]) -> dict[str, Any]:
    """Sends a job to a worker in the environment `name` and returns its answer. Both are JSON.

    worker: the name of a module of this folder. Raises a ValueError of one line where the worker
    fails.
    """
    python = ensure(name) / "bin" / "python"
    root = Path(bigmodel_jax.__file__).parents[1]
    # The environment does not contain this package, so the worker imports it from here. The worker
    # leaves accelerators to this process, whose arrays fill them.
    variables = environment() | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    variables[trust.VARIABLE] = "1"  # this process has opened the run, so its code is trusted
    with tempfile.TemporaryDirectory() as scratch:
        asked, answer = Path(scratch) / "job.json", Path(scratch) / "answer.json"
        asked.write_text(json.dumps(job))
        command = [str(python), "-m", f"bigmodel_jax.export.{worker}", str(asked), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=variables)
        if done.returncode or not answer.is_file():
            raise ValueError(
                f"export: --format {name}: the converter ended with code {done.returncode}: {last_words(done.stderr)}"
            )
        return json.loads(answer.read_text())
