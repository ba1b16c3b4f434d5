"""What a program gives in another runtime against what it gives in JAX. It needs NumPy alone: converters' workers use it."""

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

TOLERANCE = 1e-4
Table = dict[str, np.ndarray]


class Case(NamedTuple):
    """What one program gives for certain inputs, both by name."""

    inputs: Table
    outputs: Table


def save(case: Case, folder: Path, name: str, number: int) -> None:
    """One case of a program as a file."""
    arrays = {f"in:{key}": x for key, x in case.inputs.items()} | {f"out:{key}": x for key, x in case.outputs.items()}
    np.savez(folder / f"{name}.{number}.npz", **arrays)


def saved(folder: Path, name: str) -> Iterator[Case]:
    """The cases of a program."""
    for path in sorted(folder.glob(f"{name}.*.npz")):
        with np.load(path) as file:
            arrays = {
                side: {k.removeprefix(side): file[k] for k in file if k.startswith(side)} for side in ("in:", "out:")
            }
        yield Case(*arrays.values())


def worst(folder: Path, name: str, call: Callable[[Table], Table]) -> float:
    """The largest `difference` of an output in a case of a program; call: the program in the other runtime."""
    found = []
    for case in saved(folder, name):
        given = call(case.inputs)
        found += [difference(expected, given[key]) for key, expected in case.outputs.items()]
    return max(found)


def difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference, as a share of the largest absolute value where that is above 1; infinite for other shapes
    and for what is not finite."""
    if expected.shape != found.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    a, b = expected.astype(np.float64), found.astype(np.float64)
    share = np.abs(a - b).max() / max(1.0, np.abs(a).max())
    return float(share) if np.isfinite(share) else float("inf")


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


def place(error: BaseException) -> str:
    """The innermost line of a model in which an error was raised, and where it stands; "" where none was."""
    frames = traceback.extract_tb(error.__traceback__)
    parts = [(Path(frame.filename).parts, frame) for frame in frames]
    ours = [f for p, f in parts if "bigmodel_jax" in p and "site-packages" not in p and "export" not in p]
    return f"`{ours[-1].line}` ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""


def check(option: str, converter: str, name: str, kind: str, made: dict) -> None:
    """ValueError, one line, where a converter has not converted a program, or what it made gives other numbers.

    made: what the worker answers, {"error": {"operation", "where", "said"}} or {"difference": ...}.
    """
    if wrong := made.get("error"):
        operation, where = wrong["operation"], wrong["where"]
        at = " at ".join(part for part in (operation, where) if part) or "an operation that it does not name"
        # What fails without a name failed when the program was traced, at a size that is not a number.
        ways = "" if operation and "dynamic" not in operation else "; --batch N --length N give it fixed sizes"
        raise ValueError(
            f"{option}: the program {name} of {kind} uses {at}, which {converter} does not convert: {wrong['said']}{ways}"
        )
    if not made["difference"] <= TOLERANCE:
        raise ValueError(
            f"{option}: the program {name} of {kind}, converted by {converter}, gives other numbers: they differ by "
            f"{made['difference']:.1e}, more than {TOLERANCE:.0e}"
        )
