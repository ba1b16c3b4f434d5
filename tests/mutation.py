"""Plants one mistake at a time in a copy of the project, and prints which the quick tests of that
file notice.

    uv run tests/mutation.py                            the reviewed list (mutation_list.txt)
    uv run tests/mutation.py --only nn/experts/moe.py   those of one file, or of one folder
    uv run tests/mutation.py --seed 3 --count 40        mistakes drawn anew; some may change nothing
    uv run tests/mutation.py --list FILE                another list in the same form

The tests are the file's mirror and those that mirrors.py names, until the first that fails. Results
are kept, so that the list may be run in parts; --again runs those anew that nothing noticed.
"""

import argparse
import functools
import importlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
from mirrors import ROOT, tests_of
from mistakes import LIST, PACKAGE, Mistake, drawn, planted, reviewed

COPIED = (PACKAGE, "configs", "docs", "launch.py", "pyproject.toml", "README.md", "tests")
PRELOADED = ("jax", "jax.numpy", "flax.struct", "flax.traverse_util", "optax", "numpy", "tyro", "rich.console")
LIMIT = 600  # seconds that the tests of a file may take


def copy_project(folder: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)


def preload() -> None:
    """Imports what every test imports, once: a forked process has it."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
    for name in ("conftest", *PRELOADED):  # conftest sets JAX's environment
        importlib.import_module(name)


def run_tests(folder: Path, tests: list[str], limit: float) -> tuple[bool, str]:
    """(whether all passed, the first that did not), in a process of its own that ends after `limit`
    seconds."""
    output = folder / "output.txt"
    child = os.fork()
    if not child:
        _in_child(folder, tests, output)
    end = time.monotonic() + limit
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False, f"no end within {limit:.0f} s"
        time.sleep(0.1)
    text = output.read_text()
    if done[1] == 0:
        return True, ""
    failed = [line for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
    named = failed[0].split(" - ")[0].split(" ", 1)[1] if failed else text[-300:]
    return False, named or "the end of the process"


def _in_child(folder: Path, tests: list[str], output: Path) -> None:
    """Runs the tests of the copy, and does not return."""
    code = 1
    try:
        os.setpgid(0, 0)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.chdir(folder)
        os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True
        sys.path[:] = [str(folder), *(p for p in sys.path if not Path(p).is_relative_to(ROOT / "tests"))]
        del sys.modules["conftest"]
        code = pytest.main(["-x", "-q", "--no-header", "-n", "0", "--tb=no", "-p", "no:cacheprovider", *tests])
        sys.stdout.flush()
    finally:
        os._exit(int(code))


@functools.cache
def check_unplanted(folder: Path, test: str) -> None:
    """Ends the script where a test fails though nothing is planted."""
    if "::" in test and not run_tests(folder, [test], LIMIT)[0]:
        sys.exit(f"error: nothing is planted, and {test} fails")


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
    preload()
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
    began = time.monotonic()
    for i, mistake in enumerate(todo):
        tests, file = tests_of(mistake.file), folder / PACKAGE / mistake.file
        source = file.read_text()
        file.write_text(planted(source, mistake))
        try:
            passed, by = run_tests(folder, tests, LIMIT)
        finally:
            file.write_text(source)
        check_unplanted(folder, by)
        results[str(mistake)] = "" if passed else by
        path.write_text(json.dumps(read_results(path) | {str(mistake): results[str(mistake)]}, indent=1))
        left = (time.monotonic() - began) / (i + 1) * (len(todo) - i - 1)
        print(
            f"{i + 1}/{len(todo)}  {left / 60:.0f} min left  {'MISSED' if passed else 'noticed'}  {mistake}", flush=True
        )


def room_of(mistake: Mistake) -> str:
    return mistake.file.rpartition("/")[0] or "."


def report(mistakes: list[Mistake], results: dict[str, str]) -> None:
    done = [m for m in mistakes if str(m) in results]
    for room, group in itertools.groupby(sorted(done, key=room_of), key=room_of):
        group = list(group)
        print(f"{room:<12} {sum(bool(results[str(m)]) for m in group):>3} of {len(group)}")
    noticed = sum(bool(results[str(m)]) for m in done)
    print(f"noticed: {noticed} of {len(done)} ({noticed / max(len(done), 1):.0%})")
    for mistake in done:
        if not results[str(mistake)]:
            print(f"not noticed: {mistake}")


if __name__ == "__main__":
    main()
