"""Reads a `Config` from a Python file, a config.json or a run's folder, and writes config.json."""

import dataclasses
import json
import re
import sys
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigmodel_jax.config import Config, check_parts, override
from bigmodel_jax.core import files, formats, ranges, trust, user_code
from bigmodel_jax.core.dataclass_json import from_json, to_json
from bigmodel_jax.core.spelling import nearest


class Unreadable(ValueError):
    """Raised for a config.json that is missing or is not complete JSON."""


def load(path: str | Path, overrides: Sequence[str] = (), *, runs_code: bool = True) -> Config:
    """The config of a .py file, a config.json or a run's folder, with dotted overrides applied.

    runs_code: the caller may call functions that the config names, so these must be trusted, as
    well as its classes. Raises ValueError for a file that is not a config.
    """
    path = Path(path)
    source = path / "config.json" if path.is_dir() else path
    if not source.is_file():
        raise Unreadable(f"config {str(path)!r}: no such file{_nearby(source)}")
    config = _from_json_file(source) if source.suffix == ".json" else _from_python(source)
    check_parts(config)
    ranges.check(config)
    if runs_code and source.suffix == ".json":
        trust_functions(config, source.parent)
    return override(config, overrides, prog=f"launch.py train {path}") if overrides else config


def trust_functions(config: Config, run_dir: Path) -> None:
    """Raises ValueError if a config read from `run_dir` names a function that is not trusted.

    A function in a file that this process has imported by its path counts as trusted: the user
    named that file, or trusted it before.
    """
    for name in user_code.functions(config):
        file = name.rpartition(":")[0]
        if not (file.endswith(".py") and file in sys.modules):
            trust.check(name, run_dir)


def _nearby(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("configs")
    return nearest(str(folder / path.name), [str(p) for p in folder.glob("*.py")])


def _from_json_file(path: Path) -> Config:
    try:
        node = json.loads(path.read_bytes())
        config = from_json(formats.opened(node, path) if isinstance(node, dict) else node, path.parent)
    except RecursionError as error:
        raise Unreadable(f"config {str(path)!r}: its brackets are nested too deeply") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Unreadable(f"config {str(path)!r} is not JSON: {error}") from error
    except formats.Unknown:  # its message names the file already
        raise
    except ValueError as error:
        raise ValueError(f"config {str(path)!r}: {error}") from error
    if not isinstance(config, Config):
        raise ValueError(f"config {str(path)!r} holds {type(config).__name__}, not a Config")
    return config


def _from_python(path: Path) -> Config:
    module = _import_file(path)
    if not hasattr(module, "get_config"):
        raise ValueError(f"config {str(path)!r} has no get_config(); it must define one that returns a Config")
    try:
        config = module.get_config()
    except Exception as error:
        raise ValueError(f"config {str(path)!r}: get_config() raised {_where(error)}") from error
    if not isinstance(config, Config):
        raise ValueError(f"config {str(path)!r}: get_config() returned {type(config).__name__}, not a Config")
    try:
        return user_code.bound(config, module)
    except ValueError as error:
        raise ValueError(f"config {str(path)!r}: {error}") from error


def _import_file(path: Path) -> Any:
    """The module of a config file, named by its path: config.json finds the file's classes by that
    name."""
    if path.suffix != ".py":
        raise ValueError(f"config {str(path.resolve())!r} is not a Python file, a config.json or a run's folder")
    try:
        return user_code.import_file(path)
    except Exception as error:
        raise ValueError(f"config {str(path.resolve())!r} cannot be imported: {_where(error)}") from error


def _where(error: Exception) -> str:
    """One line with the class, text and line number of an exception that a user's file raised."""
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} (line {error.lineno} of {error.filename})"
    frames = list(traceback.walk_tb(error.__traceback__))
    # Frames inside `dataclasses.replace` say nothing to the user.
    asked = [(f, line) for f, line in frames if f.f_code.co_filename != dataclasses.__file__]
    at = f" (line {asked[-1][1]} of {asked[-1][0].f_code.co_filename})" if asked else ""
    return f"{type(error).__name__}: {text}{_nearest_field(text, frames[-1][0]) if frames else ''}{at}"


def _nearest_field(text: str, frame: types.FrameType) -> str:
    """The field that a misspelt keyword of a config class may have meant.

    The error was raised in `frame`.
    """
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text)
    if not found:
        return ""
    # An error in `dataclasses.replace` is raised in its own frame. The instance is one of its
    # arguments.
    known = {type(value).__name__: type(value) for value in frame.f_locals.values()}
    cls = frame.f_globals.get(found[1], known.get(found[1]))
    if not dataclasses.is_dataclass(cls):
        return ""
    now = getattr(cls, "RENAMED", {}).get(found[2])
    if not now:
        return nearest(found[2], [f.name for f in dataclasses.fields(cls)])
    part, _, inside = now.partition(".")
    return f" (it is now called {now!r}{f', as in {part}=Compute({inside}=...)' if inside else ''})"


def save(config: Config, path: Path) -> None:
    """Writes config.json, from which the run can be repeated. The write is atomic."""
    files.replace(path, json.dumps(formats.stamp() | to_json(config), indent=2) + "\n")
