"""Dataclasses as JSON: each becomes a dict of its fields plus "type", as in a run's config.json."""

import dataclasses
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from bigmodel_jax.core import formats, ranges, trust, user_code
from bigmodel_jax.core.spelling import nearest


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
    """The inverse of `to_json`.

    Raises ValueError for an unknown type or field, for a value that its field cannot hold, and for
    code that a config.json in `run_dir` names without being trusted (core/trust.py).
    """
    if isinstance(node, list):
        return tuple(from_json(v, run_dir) for v in node)
    if not isinstance(node, dict):
        return node
    cls = find_class(node.get("type", ""), run_dir)
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
    for part, fields in moved.items():  # fields that earlier versions had in the class itself
        values[part] = from_json(to_json(values.get(part, known[part].default)) | fields, run_dir)
    required = {f.name for f in dataclasses.fields(cls) if dataclasses.MISSING is f.default is f.default_factory}
    if missing := sorted(required - values.keys()):
        raise ValueError(f"{cls.__name__} lacks {', '.join(missing)}")
    for name, value in values.items():  # first, because the class's own checks rely on the types
        ranges.check_value(f"{cls.__name__}.{name}", value, ranges.hints(cls)[name])
    return cls(**values)


def find_class(tag: Any, run_dir: Path | None) -> type:
    """The dataclass that a tag "module:Class" or "path/of/file.py:Class" names.

    Raises ValueError if there is none, or if its code is not trusted.
    """
    if not isinstance(tag, str):
        raise ValueError(f"type {tag!r} is unknown; it must be a text, module:Class")
    module_name, _, class_name = tag.rpartition(":")
    module_name = formats.module_now(module_name)
    is_file = module_name.endswith(".py")
    if is_file and not Path(module_name).is_file():
        raise ValueError(f"{class_name} is defined in {module_name!r}, which is not there any more")
    # Only a new import can run code. A module that is imported already is not checked.
    if (str(Path(module_name).resolve()) if is_file else module_name) not in sys.modules:
        trust.check(tag, run_dir)
    try:
        module = user_code.import_file(Path(module_name)) if is_file else importlib.import_module(module_name)
    except Exception as error:
        if not (is_file or isinstance(error, (ImportError, ValueError))):  # whatever the user's file raises
            raise
        module = None
    cls = getattr(module, class_name, None)
    if not (inspect.isclass(cls) and dataclasses.is_dataclass(cls)):
        names = [n for n, c in vars(module).items() if dataclasses.is_dataclass(c)] if module else []
        raise ValueError(f"type {tag!r} is unknown{nearest(class_name, names)}")
    return cls
