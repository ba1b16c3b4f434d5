"""Mistakes that mutation.py plants: read from its list, or drawn; each replaces one node of a
file's syntax tree."""

import ast
import functools
import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mirrors import ROOT

PACKAGE = "bigmodel_jax"
LIST = ROOT / "tests" / "mutation_list.txt"


class Mistake(NamedTuple):
    """file: below the package; place: the function, "" for the module; old: one expression or
    statement in it, as source; nth: which of several equal ones."""

    file: str
    place: str
    old: str
    new: str
    nth: int = -1

    def __str__(self) -> str:
        return f"{self.file} {self.place}: {' '.join(self.old.split())} -> {' '.join(self.new.split())}"


def reviewed(path: Path = LIST) -> list[Mistake]:
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return [parse_line(line) for line in lines]


def parse_line(line: str) -> Mistake:
    file, place, change = line.split(" | ", 2)
    old, new, nth = re.fullmatch(r"(.+) => (.+?)(?: @(\d+))?", change).groups()
    return Mistake(file, place, old, new, -1 if nth is None else int(nth))


# ----------------------------------------------------------------------------------------- planting


def planted(source: str, mistake: Mistake) -> str:
    """The file with the mistake; LookupError as in `anchor`, or where the mistake changes
    nothing."""
    node = anchor(source, mistake)
    new = f"({mistake.new})" if isinstance(node, ast.expr) else mistake.new
    changed = replaced(source, node, new)
    if ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source)):
        raise LookupError(f"{mistake}: it changes nothing")
    return changed


def anchor(source: str, mistake: Mistake) -> ast.expr | ast.stmt:
    """The node that `mistake.old` names.

    LookupError where it is not there, where several are there and no number says which, or where
    the number is that of none of several.
    """
    scope, wanted = find_scope(parse_file(source), mistake.place), parse(mistake.old)
    said = ast.dump(wanted)
    found = [node for node in ast.walk(scope) if type(node) is type(wanted) and ast.dump(node) == said]
    if len(found) != 1 if mistake.nth < 0 else len(found) <= max(mistake.nth, 1):
        number = "" if mistake.nth < 0 else f", and its number is @{mistake.nth}"
        raise LookupError(
            f"{mistake}: the anchor is there {len(found)} times{number}; mend its line in mutation_list.txt"
        )
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))[max(mistake.nth, 0)]


parse_file = functools.cache(ast.parse)  # the list names most files more than once


def find_scope(tree: ast.Module, place: str) -> ast.AST:
    """The function or class by its dotted name; one that stands directly in its scope comes
    first."""
    scope = tree
    for name in filter(None, place.split(".")):
        direct = [n for n in ast.iter_child_nodes(scope) if is_definition(n, name)]
        inside = direct or [n for n in ast.walk(scope) if n is not scope and is_definition(n, name)]
        if len(inside) != 1:
            raise LookupError(f"{place}: {name} is defined {len(inside)} times; mend mutation_list.txt")
        scope = inside[0]
    return scope


def is_definition(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name


def parse(text: str) -> ast.AST:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        return ast.parse(text).body[0]


def replaced(source: str, node: ast.AST, new: str) -> str:
    lines = source.encode().split(b"\n")
    before = b"\n".join([*lines[: node.lineno - 1], lines[node.lineno - 1][: node.col_offset]])
    after = b"\n".join([lines[node.end_lineno - 1][node.end_col_offset :], *lines[node.end_lineno :]])
    return (before + new.encode() + after).decode()


# ------------------------------------------------------------------------------------------ drawing


COMPARED = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="}
COMPUTED = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "//"}


def drawn(seed: int, count: int, only: str) -> list[Mistake]:
    """`count` of the mistakes that the rules below know."""
    files = sorted(str(p.relative_to(ROOT / PACKAGE)) for p in (ROOT / PACKAGE).rglob("*.py"))
    every = [mistake for file in files if file.startswith(only) for mistake in of_file(file)]
    random.Random(seed).shuffle(every)
    return list(itertools.islice(filter(fits, every), count))


def fits(mistake: Mistake) -> bool:
    """Whether its anchor is there once, and what it makes is Python."""
    try:
        planted((ROOT / PACKAGE / mistake.file).read_text(), mistake)
    except (LookupError, SyntaxError):
        return False
    return True


def of_file(file: str) -> Iterator[Mistake]:
    source = (ROOT / PACKAGE / file).read_text()
    for node, place in functions(ast.parse(source), ""):
        for expression in expressions(node):
            old = ast.get_source_segment(source, expression)
            yield from (Mistake(file, place, old, new) for new in changes(source, expression))


def expressions(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions of a function, without those of the functions inside it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield child
        if not isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield from expressions(child)


def functions(node: ast.AST, prefix: str) -> Iterator[tuple[ast.AST, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            name = f"{prefix}.{child.name}".lstrip(".")
            if isinstance(child, ast.FunctionDef):
                yield child, name
            yield from functions(child, name)


def changes(source: str, node: ast.expr) -> list[str]:
    """What may stand in the place of an expression: another sign, comparison, bound, axis, order,
    or a term less."""

    def text(part: ast.AST) -> str:
        return ast.get_source_segment(source, part)

    if (
        isinstance(node, ast.BinOp)
        and type(node.op) in COMPUTED
        and not isinstance(node.left, ast.Constant | ast.JoinedStr)
    ):
        swapped = f"({text(node.left)}) {COMPUTED[type(node.op)]} ({text(node.right)})"
        return [swapped, text(node.left)]
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARED:
        return [f"({text(node.left)}) {COMPARED[type(node.ops[0])]} ({text(node.comparators[0])})"]
    if isinstance(node, ast.BoolOp):
        return [f" {'or' if isinstance(node.op, ast.And) else 'and'} ".join(f"({text(v)})" for v in node.values)]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        return [text(node.operand)]
    if isinstance(node, ast.IfExp):
        return [f"({text(node.orelse)}) if ({text(node.test)}) else ({text(node.body)})"]
    if isinstance(node, ast.Call):
        name, args = text(node.func), [text(a) for a in node.args]
        if name.endswith(("fold_in", "stop_gradient", "abs", "floor", "ceil")) and args:
            return [args[0]]
        if name.endswith(("min", "minimum")) and len(args) == 2:
            return [text(node.func).replace("min", "max") + f"({', '.join(args)})"]
    return []
