"""Plants one mistake at a time in a copy of the project, and prints which the quick tests of that file notice.

    uv run tests/mutation.py                        the reviewed list (mutation_list.txt)
    uv run tests/mutation.py --only nn/moe.py       those of one file, or of one folder
    uv run tests/mutation.py --seed 3 --count 40    mistakes drawn anew, of which some may change nothing
    uv run tests/mutation.py --list FILE            another list in the same form

A mistake replaces one node of a file's syntax tree. The tests are the file's mirror and those that mirrors.py names, until the
first that fails. Results are kept, so that the list may be run in parts; --again runs those anew that nothing noticed.
"""

import argparse
import ast
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mirrors import ROOT, tests_of

PACKAGE = "bigmodel_jax"
COPIED = (PACKAGE, "configs", "docs", "launch.py", "pyproject.toml", "README.md", "tests")
LIST = ROOT / "tests" / "mutation_list.txt"
LEAST_SECONDS = 120  # of the time limit, which is also four times what the tests take where nothing is planted


class Mistake(NamedTuple):
    """file: below the package; place: the function, "" for the module; old: one expression or statement in it, as source;
    nth: which of several equal ones."""

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


# ------------------------------------------------------------------------------------------------ planting


def planted(source: str, mistake: Mistake) -> str:
    """The file with the mistake; LookupError where its anchor is not there, or is there more often than once."""
    scope = find_scope(ast.parse(source), mistake.place)
    wanted = parse(mistake.old)
    found = [n for n in ast.walk(scope) if isinstance(n, ast.expr | ast.stmt) and ast.dump(n) == ast.dump(wanted)]
    if not found or (len(found) > 1 and mistake.nth < 0):
        raise LookupError(f"{mistake}: the anchor is there {len(found)} times; mend its line in mutation_list.txt")
    node = sorted(found, key=lambda n: (n.lineno, n.col_offset))[max(mistake.nth, 0)]
    new = f"({mistake.new})" if isinstance(node, ast.expr) else mistake.new
    changed = replaced(source, node, new)
    if ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source)):
        raise LookupError(f"{mistake}: it changes nothing")
    return changed


def find_scope(tree: ast.Module, place: str) -> ast.AST:
    """The function or class by its dotted name."""
    scope = tree
    for name in filter(None, place.split(".")):
        inside = [n for n in ast.walk(scope) if n is not scope and getattr(n, "name", None) == name]
        kinds = (ast.FunctionDef, ast.ClassDef)
        inside = [n for n in inside if isinstance(n, kinds)]
        if len(inside) != 1:
            raise LookupError(f"{place}: {name} is defined {len(inside)} times; mend mutation_list.txt")
        scope = inside[0]
    return scope


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


# ------------------------------------------------------------------------------------------------ drawing


COMPARED = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="}
COMPUTED = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "//"}


def drawn(seed: int, count: int, only: str) -> list[Mistake]:
    """`count` of the mistakes that the rules below know."""
    random_ = random.Random(seed)
    files = sorted(str(p.relative_to(ROOT / PACKAGE)) for p in (ROOT / PACKAGE).rglob("*.py"))
    every = [m for file in files if file.startswith(only) for m in of_file(file)]
    random_.shuffle(every)
    return every[:count]


def of_file(file: str) -> Iterator[Mistake]:
    source = (ROOT / PACKAGE / file).read_text()
    for node, place in functions(ast.parse(source), ""):
        for expression in expressions(node):
            old = ast.get_source_segment(source, expression)
            for new in changes(source, expression):
                mistake = Mistake(file, place, old, new)
                try:
                    planted(source, mistake)
                except (LookupError, SyntaxError):  # several equal ones, or no Python
                    continue
                yield mistake


def expressions(node: ast.AST) -> Iterator[ast.expr]:
    """Those of a function, without those of the functions inside it."""
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
    """What may stand in the place of an expression: another sign, comparison, bound, axis, order, or a term less."""

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


# ------------------------------------------------------------------------------------------------ running


def copy_project(folder: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)


def run_tests(folder: Path, tests: list[str], limit: float) -> tuple[bool, str]:
    """(whether all passed, the first that did not)."""
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    env.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "--no-header",
        "-n",
        "0",
        "--tb=no",
        "-p",
        "no:cacheprovider",
    ]
    try:
        done = subprocess.run(command + tests, cwd=folder, env=env, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return False, f"no end within {limit:.0f} s"
    if done.returncode == 0:
        return True, ""
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return False, failed[0].split(" - ")[0].split(" ", 1)[1] if failed else (done.stdout + done.stderr)[-300:]


def check_unplanted(folder: Path, tests: list[str], known: dict) -> float:
    """Seconds that these tests take where nothing is planted; the script ends where they fail."""
    key = " ".join(tests)
    if key not in known:
        began = time.monotonic()
        passed, by = run_tests(folder, tests, 900)
        if not passed:
            sys.exit(f"error: nothing is planted, and {by} fails")
        known[key] = time.monotonic() - began
    return known[key]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a file or folder below bigmodel_jax")
    parser.add_argument("--list", type=Path, default=LIST, help="another list in the same form")
    parser.add_argument("--seed", type=int, help="draw mistakes, instead of the reviewed list")
    parser.add_argument("--count", type=int, default=40, help="how many are drawn")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "mutation.json")
    parser.add_argument("--again", action="store_true", help="run anew those that nothing noticed")
    options = parser.parse_args()
    mistakes = [m for m in reviewed(options.list) if m.file.startswith(options.only)]
    if options.seed is not None:
        mistakes = drawn(options.seed, options.count, options.only)
    check_anchors(mistakes)
    results = read_results(options.results)
    todo = [m for m in mistakes if str(m) not in results or (options.again and not results[str(m)])]
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy_project(Path(folder))
        run(Path(folder), todo, results, options.results)
    report(mistakes, results)


def check_anchors(mistakes: list[Mistake]) -> None:
    """Ends the script, before anything runs, where an anchor has moved."""
    moved = []
    for mistake in mistakes:
        try:
            planted((ROOT / PACKAGE / mistake.file).read_text(), mistake)
        except (LookupError, SyntaxError, OSError) as error:
            moved.append(f"error: {error if isinstance(error, LookupError) else f'{mistake}: {error}'}")
    if moved:
        sys.exit("\n".join(moved))


def read_results(path: Path) -> dict[str, str]:
    return json.loads(path.read_text()) if path.is_file() else {}


def run(folder: Path, todo: list[Mistake], results: dict[str, str], path: Path) -> None:
    """results: by mistake, the test that notices it, or "" where none does."""
    began, unplanted = time.monotonic(), {}
    for i, mistake in enumerate(todo):
        tests, file = tests_of(mistake.file), folder / PACKAGE / mistake.file
        seconds = check_unplanted(folder, tests, unplanted)
        source = file.read_text()
        file.write_text(planted(source, mistake))
        try:
            passed, by = run_tests(folder, tests, max(LEAST_SECONDS, 4 * seconds))
        finally:
            file.write_text(source)
        results[str(mistake)] = "" if passed else by
        path.write_text(json.dumps(read_results(path) | {str(mistake): results[str(mistake)]}, indent=1))
        left = (time.monotonic() - began) / (i + 1) * (len(todo) - i - 1)
        print(
            f"{i + 1}/{len(todo)}  {left / 60:.0f} min left  {'MISSED' if passed else 'noticed'}  {mistake}", flush=True
        )


def report(mistakes: list[Mistake], results: dict[str, str]) -> None:
    done = [m for m in mistakes if str(m) in results]
    for room, group in itertools.groupby(sorted(done), key=lambda m: m.file.rpartition("/")[0] or "."):
        group = list(group)
        print(f"{room:<12} {sum(bool(results[str(m)]) for m in group):>3} of {len(group)}")
    noticed = sum(bool(results[str(m)]) for m in done)
    print(f"noticed: {noticed} of {len(done)} ({noticed / max(len(done), 1):.0%})")
    for mistake in done:
        if not results[str(mistake)]:
            print(f"not noticed: {mistake}")


if __name__ == "__main__":
    main()
