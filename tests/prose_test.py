"""Prose is short enough to be read at a glance, and every public name says in a sentence what it
is."""

import ast
import functools
import io
import itertools
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 100  # characters of a line of prose; a line of code may have 128
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
# What cannot be broken: a link, a command, a row of a table, code.
FENCE = re.compile(r"^\s*(```|~~~)")
UNBROKEN = re.compile(r"https?://\S{40,}|^\s*\||^\s{4,}\S|\]\(\S{60,}\)")


def tracked(pattern: str) -> list[Path]:
    """Files of this repository that git tracks and a glob matches."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", pattern], cwd=ROOT, capture_output=True)
    return [ROOT / name for name in listed.stdout.decode().split() if (ROOT / name).exists()]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all statements in it. Their expressions, which are most nodes, are left out."""
    yield node
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(node, block, ()):
            yield from statements(child)


def docstring_lines(tree: ast.Module) -> set[int]:
    """The numbers of all lines that docstrings cover, those of a config's fields included."""
    bodies = [node.body for node in statements(tree) if isinstance(node, ast.Module | ast.ClassDef | FUNCTION)]
    return {
        number
        for statement in itertools.chain(*bodies)
        if isinstance(statement, ast.Expr) and isinstance(getattr(statement.value, "value", None), str)
        for number in range(statement.lineno, statement.end_lineno + 1)
    }


def comment_lines(path: Path) -> set[int]:
    """The numbers of lines that hold nothing but a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return {t.start[0] for t in tokens if t.type == tokenize.COMMENT and t.line.lstrip().startswith("#")}


def prose_of_markdown(path: Path) -> set[int]:
    numbers, fenced = set(), False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            numbers.add(number)
    return numbers


def too_long(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    long = {n for n, line in enumerate(lines, 1) if len(line) > LONGEST and "http" not in line}
    if path.suffix == ".md":
        found = {n for n in long & prose_of_markdown(path) if not UNBROKEN.search(lines[n - 1])}
    else:  # few files have such a line, and fewer one that may be a comment
        noted = {n for n in long if lines[n - 1].lstrip().startswith("#")}
        found = (long and long & docstring_lines(parsed(path))) | (noted and noted & comment_lines(path))
    return [f"{path.relative_to(ROOT)}:{n}" for n in sorted(found)]


PROSE = ["bigmodel_jax/*.py", "configs/*.py", "benchmarks/*.py", "docs/*.py", "tests/*.py", "launch.py", "*.md"]


@pytest.mark.parametrize("pattern", PROSE)
def test_a_line_of_prose_is_at_most_100_characters_long(pattern):
    found = [line for path in tracked(pattern) for line in too_long(path)]
    assert not found, f"{len(found)} lines are longer than {LONGEST} characters:\n" + "\n".join(found)


def undocumented(path: Path) -> list[str]:
    """Public functions and classes of a file without a docstring."""
    found = []
    for node in parsed(path).body:
        named = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if named and not ast.get_docstring(node):
            found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    return found


def test_every_public_name_has_a_docstring():
    found = [name for path in tracked("bigmodel_jax/*.py") for name in undocumented(path)]
    assert not found, f"{len(found)} public names have no docstring:\n" + "\n".join(found)
