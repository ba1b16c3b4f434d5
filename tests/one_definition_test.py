"""One definition each: no two functions of the package have the same parameters and the same
body."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "bigmodel_jax"
LEAST = 60  # characters of a body; a shorter one says the same by chance
# The same words about each file's own `encode_image` and `encode_text`.
ALIKE = [{"models/clip.py:apply", "models/siglip.py:apply"}]


def key(function: ast.FunctionDef, lines: list[str]) -> tuple[str, ...] | None:
    """The names of the parameters and the body without its docstring; None for a short body."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    text = "\n".join(line.strip() for line in lines[body[0].lineno - 1 : function.end_lineno]) if body else ""
    return (*(a.arg for a in function.args.args), text) if len(text) >= LEAST else None


def equal_functions(files: list[Path], root: Path) -> list[set[str]]:
    found = defaultdict(set)
    for path in files:
        text = path.read_text()
        lines = text.splitlines()
        for part in ast.parse(text).body:
            if isinstance(part, ast.FunctionDef) and (same := key(part, lines)):
                found[same].add(f"{path.relative_to(root)}:{part.name}")
    return [names for names in found.values() if len(names) > 1]


def test_no_function_is_defined_twice():
    # Each script of export/use/ is copied alone beside an export, so it can import nothing of ours.
    files = [path for path in PACKAGE.rglob("*.py") if "export/use" not in str(path)]
    assert [names for names in equal_functions(files, PACKAGE) if names not in ALIKE] == []


def test_an_equal_body_under_another_name_is_found(tmp_path):
    body = 'return [line.strip() for line in text.splitlines() if line.strip() and line != "nothing"]'
    (tmp_path / "a.py").write_text(f'def lines(text):\n    """The lines."""\n    {body}\n')
    (tmp_path / "b.py").write_text(f"def _rows(text: str) -> list:\n    {body}\n\n\ndef other(words):\n    {body}\n")
    assert equal_functions(sorted(tmp_path.glob("*.py")), tmp_path) == [{"a.py:lines", "b.py:_rows"}]
