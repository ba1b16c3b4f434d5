"""Compares a program's outputs in another runtime with its outputs in JAX.

This module needs NumPy alone, because the converters' workers import it in environments without
JAX.
"""

import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

TOLERANCE = 1e-4  # the largest allowed `difference`: other runtimes add float32 numbers in another order
Table = dict[str, np.ndarray]


class Case(NamedTuple):
    """The inputs of one call of a program and its outputs in JAX, both as arrays by name."""

    inputs: Table
    outputs: Table


def save(case: Case, folder: Path, name: str, number: int) -> None:
    """Writes one case of the program `name` to a file of `folder`.

    number: makes the file's name unique.
    """
    arrays = {f"in:{key}": x for key, x in case.inputs.items()} | {f"out:{key}": x for key, x in case.outputs.items()}
    np.savez(folder / f"{name}.{number}.npz", **arrays)


def saved(folder: Path, name: str) -> Iterator[Case]:
    """Yields the saved cases of a program."""
    for path in sorted(folder.glob(f"{name}.*.npz")):
        with np.load(path) as file:
            arrays = {
                side: {k.removeprefix(side): file[k] for k in file if k.startswith(side)} for side in ("in:", "out:")
            }
        yield Case(*arrays.values())


def worst(folder: Path, name: str, call: Callable[[Table], Table]) -> float:
    """The largest `difference` of any output in any saved case of a program.

    call: runs the program in the other runtime.
    """
    found = []
    for case in saved(folder, name):
        given = call(case.inputs)
        found += [difference(expected, given[key]) for key, expected in case.outputs.items()]
    return max(found)


def difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest absolute difference between two arrays.

    It is divided by the largest absolute value of `expected` where that is above 1. It is infinite
    for different shapes and for values that are not finite.
    """
    if expected.shape != found.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    a, b = expected.astype(np.float64), found.astype(np.float64)
    # Outputs below 1 are compared by their absolute difference, because a relative one grows
    # without bound near 0.
    share = np.abs(a - b).max() / max(1.0, np.abs(a).max())
    return float(share) if np.isfinite(share) else float("inf")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 200 characters, or the error's type without a
    text.
    """
    # ONNX Runtime puts the file's path before what is wrong.
    said = re.sub(r"^\[ONNXRuntimeError\].* failed:", "", str(error))
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


def place(error: BaseException) -> str:
    """The innermost line of model code in an error's traceback, as "`code` (file:line)".

    It is "" where no model code was running.
    """
    frames = traceback.extract_tb(error.__traceback__)
    parts = [(Path(frame.filename).parts, frame) for frame in frames]
    ours = [f for p, f in parts if "bigmodel_jax" in p and "site-packages" not in p and "export" not in p]
    return f"`{ours[-1].line}` ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""


def check(option: str, converter: str, name: str, kind: str, made: dict, *, fixed: bool) -> None:
    """Raises a ValueError of one line where a converter failed, or where its program gives other
    numbers.

    option, converter, name, kind: what the message calls the option, the converter, the program and
    the model. made: the worker's answer, {"error": {"operation", "where", "said"}} or
    {"difference": ...}. fixed: whether all sizes of the program are numbers.
    """
    if wrong := made.get("error"):
        operation, where, said = wrong["operation"], wrong["where"], wrong["said"]
        at = " at ".join(part for part in (operation, where) if part) or "an operation that it does not name"
        # A failure without an operation's name happened while tracing with a symbolic size, which
        # fixed sizes avoid.
        helps = not fixed and (not operation or "dynamic" in f"{operation} {said}".lower())
        ways = "; --batch N --length N give it fixed sizes" if helps else ""
        raise ValueError(
            f"{option}: the program {name} of {kind} uses {at}, which {converter} does not convert: {said}{ways}"
        )
    if not made["difference"] <= TOLERANCE:
        raise ValueError(
            f"{option}: the program {name} of {kind}, converted by {converter}, gives other numbers: they differ by "
            f"{made['difference']:.1e}, more than {TOLERANCE:.0e}"
        )
