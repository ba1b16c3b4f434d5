"""Reading and writing a `Config`: a Python file, a config.json, or a run's folder."""

import dataclasses
import importlib
import inspect
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
from bigmodel_jax.core.spelling import nearest


class Unreadable(ValueError):
    """A config.json that is missing or is no whole JSON."""


def load(path: str | Path, overrides: Sequence[str] = (), *, runs_code: bool = True) -> Config:
    """The config of a .py file, a config.json or a run's folder, with dotted overrides applied.

    runs_code: the caller may call functions that the config names, so these must be trusted as well as its classes.
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
    """ValueError where a config that was read from `run_dir` names a function that is not trusted. What this process
    has imported by its path, the user named or trusted before."""
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
    except formats.Unknown:  # it names the file
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
    """The module of a config file; its name is its path, which is how config.json finds classes defined there."""
    if path.suffix != ".py":
        raise ValueError(f"config {str(path.resolve())!r} is not a Python file, a config.json or a run's folder")
    try:
        return user_code.import_file(path)
    except Exception as error:
        raise ValueError(f"config {str(path.resolve())!r} cannot be imported: {_where(error)}") from error


def _where(error: Exception) -> str:
    """One line: kind, text and line number of an exception raised by a user's file."""
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} (line {error.lineno} of {error.filename})"
    frames = list(traceback.walk_tb(error.__traceback__))
    asked = [(f, line) for f, line in frames if f.f_code.co_filename != dataclasses.__file__]  # not inside `replace`
    at = f" (line {asked[-1][1]} of {asked[-1][0].f_code.co_filename})" if asked else ""
    return f"{type(error).__name__}: {text}{_nearest_field(text, frames[-1][0]) if frames else ''}{at}"


def _nearest_field(text: str, frame: types.FrameType) -> str:
    """What a misspelt field of a config class may have meant, for an error raised in `frame`."""
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text)
    if not found:
        return ""
    known = {type(value).__name__: type(value) for value in frame.f_locals.values()}  # what `replace` was given
    cls = frame.f_globals.get(found[1], known.get(found[1]))
    if not dataclasses.is_dataclass(cls):
        return ""
    now = getattr(cls, "RENAMED", {}).get(found[2])
    if not now:
        return nearest(found[2], [f.name for f in dataclasses.fields(cls)])
    part, _, inside = now.partition(".")
    return f" (it is now called {now!r}{f', as in {part}=Compute({inside}=...)' if inside else ''})"


# ------------------------------------------------------------------------------------------------ JSON


def to_json(value: Any) -> Any:
    """Nested dicts, lists and scalars that `from_json` turns back into an equal value."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": f"{type(value).__module__}:{type(value).__qualname__}", **fields}
    if isinstance(value, (tuple, list)):
        return [to_json(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"config: {value!r} of type {type(value).__name__} cannot be written to config.json")


def from_json(node: Any, run_dir: Path | None = None) -> Any:
    """The inverse of `to_json`; ValueError for an unknown type or field, a value that its field cannot hold, or code
    that is not trusted (core/trust.py), which a config.json in `run_dir` may name."""
    if isinstance(node, list):
        return tuple(from_json(v, run_dir) for v in node)
    if not isinstance(node, dict):
        return node
    cls = _find_class(node.get("type", ""), run_dir)
    known = {f.name: f for f in dataclasses.fields(cls)}
    values, moved = {}, {}
    for name, value in node.items():
        if name == "type":
            continue
        part, _, inside = ("" if name in known else getattr(cls, "RENAMED", {}).get(name, "")).partition(".")
        if (part or name) not in known:
            raise ValueError(f"{cls.__name__} has no field {name!r}{nearest(name, known)}")
        if inside:
            moved.setdefault(part, {})[inside] = value
        else:
            values[part or name] = from_json(value, run_dir)
    for part, fields in moved.items():  # fields that stood in the class itself before they had a part of their own
        values[part] = from_json(to_json(values.get(part, known[part].default)) | fields, run_dir)
    required = {f.name for f in dataclasses.fields(cls) if dataclasses.MISSING is f.default is f.default_factory}
    if missing := sorted(required - values.keys()):
        raise ValueError(f"{cls.__name__} lacks {', '.join(missing)}")
    for name, value in values.items():  # before the class's own checks, which take the types for granted
        ranges.check_value(f"{cls.__name__}.{name}", value, ranges.hints(cls)[name])
    return cls(**values)


def _find_class(tag: Any, run_dir: Path | None) -> type:
    if not isinstance(tag, str):
        raise ValueError(f"type {tag!r} is unknown; it must be a text, module:Class")
    module_name, _, class_name = tag.rpartition(":")
    module_name = formats.module_now(module_name)
    is_file = module_name.endswith(".py")
    if is_file and not Path(module_name).is_file():
        raise ValueError(f"{class_name} is defined in {module_name!r}, which is not there any more")
    if (str(Path(module_name).resolve()) if is_file else module_name) not in sys.modules:
        trust.check(tag, run_dir)
    try:
        module = _import_file(Path(module_name)) if is_file else importlib.import_module(module_name)
    except (ImportError, ValueError):
        module = None
    cls = getattr(module, class_name, None)
    if not (inspect.isclass(cls) and dataclasses.is_dataclass(cls)):
        names = [n for n, c in vars(module).items() if dataclasses.is_dataclass(c)] if module else []
        raise ValueError(f"type {tag!r} is unknown{nearest(class_name, names)}")
    return cls


def save(config: Config, path: Path) -> None:
    """Writes config.json, from which the run can be repeated, whole or not at all."""
    files.replace(path, json.dumps(formats.stamp() | to_json(config), indent=2) + "\n")
