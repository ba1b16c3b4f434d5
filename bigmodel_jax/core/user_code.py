"""The user's Python files and functions: imported by path, and named by a text that config.json can
hold.

A function's name is "module:function" or "path/of/file.py:function". A config file may also give
the function itself or its bare name. A field that holds such a name is declared as `FunctionName`,
so that code can find all such fields of a config.
"""

import dataclasses
import importlib
import importlib.util
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from bigmodel_jax.core import ranges
from bigmodel_jax.core.spelling import nearest


@dataclasses.dataclass(frozen=True)
class _Names:
    """Marks a field that names a function.

    known: whether a text without a colon names a built-in function.
    """

    known: bool = False


FunctionName = Annotated[str, _Names()]
KnownOrFunction = Annotated[str, _Names(known=True)]


def import_file(path: Path) -> ModuleType:
    """The module of a Python file, imported once under its absolute path. Errors of the file pass
    through."""
    name = str(path.resolve())
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise ImportError(f"{name!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Register before execution, as Python's own import does, so that dataclasses find their module.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        # A module that failed must not look imported.
        del sys.modules[name]
        raise
    return module


def name_of(option: str, function: Callable | str) -> str:
    """The text that names a function. Given a text, it only makes a file's path absolute."""
    if isinstance(function, str):
        file, colon, name = function.rpartition(":")
        return f"{Path(file).resolve()}:{name}" if colon and file.endswith(".py") else function
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not module or not name.isidentifier():
        raise ValueError(
            f"{option}: {function!r} has no name of its own in a module; define it by `def` at the top level"
        )
    return f"{module}:{name}"


def find(option: str, name: str) -> Callable:
    """The function that `name` names, importing its file if needed.

    Raises ValueError if there is none.
    """
    file, colon, attribute = name.rpartition(":")
    if not colon:
        raise ValueError(
            f"{option}: {name!r} is not module:function or path/of/file.py:function; only get_config() may give a bare name"
        )
    wrong, path = f"{option}: {name!r} is not module:function", Path(file)
    if file.endswith(".py") and not path.is_file():
        near = nearest(path.name, [beside.name for beside in path.parent.glob("*.py")])
        raise ValueError(f"{wrong}: there is no such file{near}")
    try:
        module = import_file(path) if file.endswith(".py") else importlib.import_module(file)
        if callable(function := getattr(module, attribute, None)):
            return function
    except Exception as error:  # any exception that the user's file raises
        text = str(error).splitlines()[0] if str(error) else ""
        raise ValueError(f"{wrong} ({type(error).__name__}: {text})") from error
    near = nearest(attribute, [known for known, value in vars(module).items() if callable(value)])
    raise ValueError(f"{wrong}: it has no function {attribute!r}{near}")


def call(option: str, name: str, *args: Any) -> Any:
    """The function's result. Any exception of the function becomes a ValueError of one line."""
    function = find(option, name)
    try:
        return function(*args)
    except Exception as error:
        raise ValueError(f"{option}: {name} raised {described(error)}") from error


def described(error: BaseException) -> str:
    """One line with the class, text and place of an exception from the user's code."""
    line = error.__traceback__
    # The innermost frame is where the exception was raised.
    while line and line.tb_next:
        line = line.tb_next
    at = f" (line {line.tb_lineno} of {line.tb_frame.f_code.co_filename})" if line else ""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}{at}"


def bound(value: Any, module: ModuleType, name: str = "") -> Any:
    """A config, or its part called `name`, with functions and bare names replaced by full names.

    module: the config file's module, in which bare names are looked up.
    """
    if isinstance(value, tuple):
        items = tuple(bound(item, module, name) for item in value)
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if not dataclasses.is_dataclass(value):
        return value
    changed = {}
    for field in dataclasses.fields(value):
        old, option = getattr(value, field.name), f"{name}.{field.name}".lstrip(".")
        if mark := _mark(type(value), field.name):
            many = isinstance(old, tuple)
            names = tuple(_whole(option, item, module, mark.known) for item in (old if many else (old,)))
            new = names if many else names[0]
            changed |= {field.name: new} if new != old else {}
        elif (new := bound(old, module, option)) is not old:
            changed[field.name] = new
    return dataclasses.replace(value, **changed) if changed else value


def _whole(option: str, function: Callable | str, module: ModuleType, known: bool) -> str:
    if not isinstance(function, str) or ":" in function or not function:
        return name_of(option, function)
    if known:  # elsewhere a misspelt name is refused with a list of the known ones
        return f"{module.__name__}:{function}" if callable(getattr(module, function, None)) else function
    if not callable(getattr(module, function, None)):
        near = nearest(function, [name for name, value in vars(module).items() if callable(value)])
        raise ValueError(f"{option} = {function!r}: {module.__file__} has no such function{near}")
    return f"{module.__name__}:{function}"


def holds_names(cls: type, field: str) -> bool:
    """Whether a field is declared to hold one function name, or a tuple of them."""
    return _mark(cls, field) is not None


def _mark(cls: type, field: str) -> _Names | None:
    hint = ranges.hints(cls)[field]
    inner = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple and typing.get_args(hint) else hint
    return next((mark for mark in getattr(inner, "__metadata__", ()) if isinstance(mark, _Names)), None)


def parts(value: Any) -> Iterator[Any]:
    """A config and all dataclasses inside it."""
    if dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from parts(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from parts(item)


def functions(config: Any) -> list[str]:
    """The names of all functions that a config uses."""
    found = []
    for part in parts(config):
        for field in dataclasses.fields(part):
            if holds_names(type(part), field.name):
                value = getattr(part, field.name)
                found += [name for name in (value if isinstance(value, tuple) else (value,)) if ":" in name]
    return found


def moved(before: Any, now: Any) -> bool:
    """Whether two names mean one function in a file that has moved.

    The file's content is compared elsewhere.
    """
    if not (isinstance(before, str) and isinstance(now, str)):
        return False
    files = [Path(name.rpartition(":")[0]) for name in (before, now)]
    same = before.rpartition(":")[2] == now.rpartition(":")[2] and files[0].name == files[1].name
    return same and all(file.suffix == ".py" for file in files)
