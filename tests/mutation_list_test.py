"""Each line of mutation_list.txt names code that is there, so that mutation.py can plant every
mistake."""

import ast

import pytest
from mirrors import ROOT, TESTS
from mistakes import PACKAGE, anchor, parse, parse_line, reviewed

SOURCE = """
def due(x):
    return x + 1 if x + 1 else x + 2

class Set:
    def due(self, y):
        return y + 1
"""


def said_of(line: str) -> str:
    """What is wrong with the line; "" for a good one."""
    mistake = parse_line(line)
    try:
        node = anchor(SOURCE, mistake)
    except LookupError as error:
        return str(error)
    assert ast.dump(node) == ast.dump(parse(mistake.old))
    return ""


def test_every_anchor_of_the_list_is_in_the_code():
    moved, sources = [], {}
    for mistake in reviewed():
        path = ROOT / PACKAGE / mistake.file
        try:
            sources.setdefault(path, path.read_text())
            anchor(sources[path], mistake)
        except (LookupError, SyntaxError, OSError) as error:
            moved.append(str(error))
        if ast.dump(parse(mistake.old)) == ast.dump(parse(mistake.new)):
            moved.append(f"{mistake}: it changes nothing")
    assert not moved, "\n".join(moved)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("a.py | due | x + 2 => x", ""),
        ("a.py | due | x + 1 => x @1", ""),
        ("a.py | Set.due | y + 1 => y", ""),
        ("a.py |  | y + 1 => y", ""),
        ("a.py | due | x + 1 => x", "the anchor is there 2 times; mend"),
        ("a.py | due | x + 1 => x @2", "the anchor is there 2 times, and its number is @2"),
        ("a.py | due | x + 2 => x @0", "the anchor is there 1 times, and its number is @0"),
        ("a.py | due | y + 1 => y", "the anchor is there 0 times"),
        ("a.py | never | x + 2 => x", "never is defined 0 times"),
    ],
)
def test_an_anchor_is_there_as_often_as_its_line_says(line, wrong):
    said = said_of(line)
    assert wrong in said
    assert bool(wrong) == bool(said)


def test_the_table_of_tests_names_files_that_exist():
    tests = {test for row in TESTS.values() for test in row}
    named = [*(ROOT / PACKAGE / file for file in TESTS), *(ROOT / "tests" / test for test in tests)]
    assert not [str(path) for path in named if not path.is_file()]
