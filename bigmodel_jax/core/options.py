"""Turns command-line arguments into a dataclass: tyro parses, and a user's mistake is a ValueError
of one line.

The option `--part.field` sets a field of a part. `_` and `-` are equivalent. The fields of a part
that is declared `Unnamed` are options without a prefix.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NoReturn

import tyro

# tyro publishes errors only as drawn boxes. This private module has their structure, and
# pyproject.toml pins tyro's version for it.
from tyro import _errors as errors

from bigmodel_jax.core import ranges
from bigmodel_jax.core.spelling import nearest

# With Any, tyro takes the type from the default value, so users' own classes get options, too.
Unnamed = tyro.conf.FlagConversionOff[Annotated[Any, tyro.conf.arg(name="")]]
HELP = frozenset({"-h", "--help"})
MARKERS = (tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff)


def parse(default: Any, args: Sequence[str], prog: str) -> Any:
    """A copy of the dataclass `default` with the fields that `args` name replaced.

    args: such as ["--optim.lr", "3e-4"]. Raises ValueError: one line with the option, its value,
    what is allowed and the nearest spelling.
    """
    found = _parse(default, args, prog)
    ranges.check(found)
    return found


def parse_known(default: Any, args: Sequence[str], prog: str) -> tuple[Any, list[str]]:
    """(result of `parse`, the arguments that name no field); --help counts as such an argument."""
    found, rest = _parse(default, args, prog, return_unknown_args=True, add_help=False)
    ranges.check(found)
    return found, rest


def print_fields(config: Any) -> None:
    """Prints every field of a config class, or of an instance, with its type, default and comment.

    The fields stand as the launcher's --help shows them, and those of its parts follow. Raises
    ValueError, one line, for a class that has fields without a default.
    """
    default = _defaults(config) if isinstance(config, type) else config
    with contextlib.suppress(SystemExit):  # tyro ends the process once it has printed a help text
        _parse(default, ["--help"], type(default).__name__)


def _defaults(cls: type) -> Any:
    try:
        return cls()
    except TypeError as error:
        raise ValueError(f"{cls.__name__} has fields without a default ({error}); give an instance") from error


def asks_for_help(args: Sequence[str]) -> bool:
    """Whether the arguments contain -h or --help."""
    return bool(HELP & set(args))


def _parse(default: Any, args: Sequence[str], prog: str, **how: bool) -> Any:
    def refuse(event: errors.ParseErrorEvent) -> NoReturn:
        raise ValueError(_one_line(event, default, args))

    with errors.on_parse_error(refuse):
        return tyro.cli(
            type(default), default=default, args=list(args), prog=prog, config=MARKERS, use_underscores=True, **how
        )


def _one_line(event: errors.ParseErrorEvent, default: Any, args: Sequence[str]) -> str:
    if isinstance(event, errors.UnrecognizedArgs):
        return _unrecognized(event.tokens, default)
    argument = getattr(event, "argument", None)
    if argument is None:  # raised by a config class itself
        return " ".join(getattr(event, "message", str(event)).split())
    name, expected = argument.lowered.name_or_flags[-1], argument.lowered.metavar
    if isinstance(event, errors.InvalidChoice):
        allowed = ", ".join(map(repr, event.choices))
        return f"{name} = {event.value!r}; allowed: {allowed}{nearest(event.value, event.choices)}"
    if isinstance(event, errors.BadValue):
        return f"{name}: its value is missing; expected {argument.lowered.nargs} values, {expected}"
    return f"{name} = {_value(name, args)}; expected {expected}"


def _value(name: str, args: Sequence[str]) -> str:
    """The value that `args` give for an option, as the user typed it."""
    at = next(
        i for i in reversed(range(len(args))) if args[i].split("=")[0].replace("-", "_") == name.replace("-", "_")
    )
    if "=" in args[at]:
        return repr(args[at].partition("=")[2])
    end = next((i for i in range(at + 1, len(args)) if args[i].startswith("--")), len(args))
    return " ".join(map(repr, args[at + 1 : end]))


def _unrecognized(tokens: Sequence[str], default: Any) -> str:
    option = tokens[0].split("=")[0]
    name = option.removeprefix("--").replace("-", "_")
    names, renamed = dict(_names(default)), dict(_names(default, "RENAMED"))
    if name in renamed:
        return f"{option} is now called --{renamed[name]}"
    near = [f"'--{known}'" for known in names if known.endswith(f".{name}")]  # the user typed --lr without its part
    meant = f" (perhaps you meant {' or '.join(near[:3])})" if near else ""
    meant = meant or nearest(f"--{name}", [f"--{known}" for known in names], cutoff=0.7)
    return f"Unrecognized options: {' '.join(tokens)}{meant or '; --help lists every option'}"


def _names(value: Any, of: str = "", prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, name) of every option of a dataclass; with of="RENAMED": (old name, new name)."""
    fields = [field.name for field in dataclasses.fields(value)]
    for old, new in getattr(value, of, {}).items() if of else ():
        if old not in fields and new.partition(".")[0] in fields:
            yield prefix + old, prefix + new
    for field in dataclasses.fields(value):
        part = getattr(value, field.name)
        name = prefix + field.name
        if dataclasses.is_dataclass(part):
            yield from _names(part, of, prefix if ranges.unnamed(ranges.hints(type(value))[field.name]) else f"{name}.")
        elif not of:
            yield name, name
