"""Turns command-line arguments into a dataclass: tyro parses, and a user's mistake is a ValueError
of one line.

The option `--part.field` sets a field of a part; `_` and `-` are equivalent. The fields of a part
that is declared `Unnamed` are options without a prefix.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NoReturn

import tyro

# tyro's structured errors; its only public form of an error is a drawn box. pyproject.toml pins the version for this.
from tyro import _errors as errors

from bigmodel_jax.core import ranges
from bigmodel_jax.core.spelling import nearest

# Any: tyro takes the type of the default, which is how a config's own classes get options.
Unnamed = tyro.conf.FlagConversionOff[Annotated[Any, tyro.conf.arg(name="")]]
HELP = frozenset({"-h", "--help"})
MARKERS = (tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff)


def parse(default: Any, args: Sequence[str], prog: str) -> Any:
    """`default`, a dataclass, with the fields named in `args` ("--optim.lr", "3e-4") replaced.

    Raises ValueError, one line with the option, its value, what is allowed and the nearest spelling.
    """
    found = _parse(default, args, prog)
    ranges.check(found)
    return found


def parse_known(default: Any, args: Sequence[str], prog: str) -> tuple[Any, list[str]]:
    """(as `parse`, the arguments that name no field of `default`); --help is one of them."""
    found, rest = _parse(default, args, prog, return_unknown_args=True, add_help=False)
    ranges.check(found)
    return found, rest


def asks_for_help(args: Sequence[str]) -> bool:
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
    if argument is None:  # a check of a config's own class
        return " ".join(getattr(event, "message", str(event)).split())
    name, expected = argument.lowered.name_or_flags[-1], argument.lowered.metavar
    if isinstance(event, errors.InvalidChoice):
        allowed = ", ".join(map(repr, event.choices))
        return f"{name} = {event.value!r}; allowed: {allowed}{nearest(event.value, event.choices)}"
    if isinstance(event, errors.BadValue):
        return f"{name}: its value is missing; expected {argument.lowered.nargs} values, {expected}"
    return f"{name} = {_value(name, args)}; expected {expected}"


def _value(name: str, args: Sequence[str]) -> str:
    """What `args` give for the option, as it was typed."""
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
    near = [f"'--{known}'" for known in names if known.endswith(f".{name}")]  # the part of --lr is left out
    meant = f" (perhaps you meant {' or '.join(near[:3])})" if near else ""
    meant = meant or nearest(f"--{name}", [f"--{known}" for known in names], cutoff=0.7)
    return f"Unrecognized options: {' '.join(tokens)}{meant or '; --help lists every option'}"


def _names(value: Any, of: str = "", prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, the same) of every option of a dataclass; of="RENAMED": (name of an earlier version, name now)."""
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
