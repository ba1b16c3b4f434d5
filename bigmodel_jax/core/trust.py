"""Decides which code a config.json may name: this package's, and the user's own in the working
directory.

A run's folder may come from somebody else. Opening it imports the classes that its config.json
names, and importing a Python file runs it. So code inside a run's folder, and code outside both
this package and the working directory, is refused until the user gives `--trust`. A Python config
file is trusted, because the user names it on the command line.
"""

import importlib.machinery
import os
import re
import sys
from pathlib import Path

VARIABLE = "BIGMODEL_TRUST"  # an environment variable, so that child processes inherit it
OURS = "bigmodel_jax"


def allow() -> None:
    """From now on, code that any config.json names is imported."""
    os.environ[VARIABLE] = "1"


def allowed() -> bool:
    """Whether the user has given `--trust`."""
    return os.environ.get(VARIABLE) == "1"


def check(tag: str, run_dir: Path | None) -> None:
    """Raises ValueError unless the code of a tag may be imported.

    tag: "module:name" or "path/of/file.py:name". run_dir: the folder whose config.json holds the
    tag.
    """
    module, _, name = tag.rpartition(":")
    if not name or not (module.endswith(".py") or re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module)):
        raise ValueError(f"{tag!r} is not module:name or path/of/file.py:name")
    if allowed() or module.split(".")[0] == OURS:
        return
    file = Path(module) if module.endswith(".py") else _origin(module)
    wrong = _stranger(file, run_dir)
    if wrong:
        raise ValueError(
            f"{name} is defined in {str(file or module)!r}, {wrong}; opening this run would execute it: "
            "read it, then add --trust"
        )


def _origin(module: str) -> Path | None:
    """The file of a module's outermost package, found without importing it; None if there is
    none."""
    outermost = module.split(".")[0]
    loaded = sys.modules.get(outermost)
    spec = loaded.__spec__ if loaded else importlib.machinery.PathFinder.find_spec(outermost)
    # A namespace package has no file, but it has folders.
    origin = getattr(spec, "origin", None) or next(iter(getattr(spec, "submodule_search_locations", None) or ()), None)
    return Path(origin) if origin and Path(origin).exists() else None


def _stranger(file: Path | None, run_dir: Path | None) -> str:
    """The reason why a file may be another person's; "" if it counts as the user's own."""
    here, path = Path.cwd().resolve(), file.resolve() if file else None
    if path is None or not path.is_relative_to(here) or "site-packages" in path.parts:
        return f"outside the working directory {str(here)!r}"
    if run_dir is not None and path.is_relative_to(Path(run_dir).resolve()):
        return "inside the run's folder"
    return ""
