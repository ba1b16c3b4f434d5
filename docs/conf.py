"""How Sphinx makes a site of the pages and of the docstrings: CONTRIBUTING.md has the command.

Sphinx reads the settings and calls `setup`; nothing in the package imports this file.
"""

import dataclasses
import functools
import gc
import inspect
import os
import re
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Sphinx keeps what it has parsed to its end. A fifth of its time went into searches for cycles in
# it.
gc.set_threshold(200_000, 50, 100)

project = "bigmodel_jax"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.apidoc"]
html_theme = "furo"
html_title = "bigmodel_jax"
exclude_patterns = ["plans", "images", "api/modules.rst"]
# Links between the pages name headings by the anchors that GitHub gives them.
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]  # Pygments has no lexer of CSV

apidoc_modules = [
    {
        "path": "../bigmodel_jax",
        "destination": "api",
        # Programs that another Python runs, and code that needs packages which no extra brings.
        "exclude_patterns": ["**/use/*", "**/*_worker.py", "**/worker.py", "**/ray_driver.py", "**/__main__.py"],
        "module_first": True,
    }
]
# Only members with docstrings. A setting of this name exists, and Sphinx ignores it for packages.
os.environ["SPHINX_APIDOC_OPTIONS"] = "members,show-inheritance"
# Optional packages that modules import at their top: the site is built without them.
autodoc_mock_imports = ["apache_beam", "lm_eval", "prometheus_client", "starlette", "uvicorn"]
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
# A page's list of contents names its modules. With every function, it would have hundreds of lines,
# and each page of the site would copy them.
toc_object_entries = False

# Pages that show a file from the top of the repository.
SHOWN = {"index": "README.md", "contributing": "CONTRIBUTING.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCED = re.compile(r"(^```.*?^```$)", re.M | re.S)
FIELD = re.compile(r"^    (\w+): ")


def setup(app: Any) -> None:
    """Connects the functions below to the events of Sphinx."""
    # Apidoc leaves files alone that are there, so a new module would be missing from an older
    # build.
    shutil.rmtree(ROOT / "docs" / "api", ignore_errors=True)
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", rewrite_docstring)


def read_page(app: Any, name: str, source: list[str]) -> None:
    """Puts a file from the top of the repository in front of its page, and makes links local."""
    text = source[0]
    if name in SHOWN:
        app.env.note_dependency(str(ROOT / SHOWN[name]))
        text = local_links((ROOT / SHOWN[name]).read_text(), ROOT) + "\n" + text
    source[0] = local_links(text, ROOT / "docs")


def local_links(text: str, folder: Path) -> str:
    """Links of a page in `folder` as links of the site; links to other files become plain text."""

    def link(found: re.Match) -> str:
        mark, words, target = found.groups()
        path, hash_, heading = target.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return found[0]
        there = (folder / path).resolve()
        for page, shown in SHOWN.items():
            if there == ROOT / shown:
                return f"{mark}[{words}]({page}.md{hash_}{heading})"
        if there.is_file() and there.is_relative_to(ROOT / "docs") and there.suffix in (".md", ".png", ".svg"):
            return f"{mark}[{words}]({there.relative_to(ROOT / 'docs')}{hash_}{heading})"
        return words

    parts = FENCED.split(text)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)


def rewrite_docstring(app: Any, what: str, name: str, subject: Any, options: Any, lines: list[str]) -> None:
    """Turns a docstring, which is prose with `code`, into reStructuredText, and adds a config's
    fields."""
    found = [block for text in "\n".join(lines).split("\n\n") for block in blocks(text)]
    if what == "class" and dataclasses.is_dataclass(subject):
        found.append(fields(subject))
    lines[:] = "\n\n".join(found).split("\n")


def blocks(text: str) -> list[str]:
    """Paragraphs, lists and indented examples of a docstring's part without empty lines."""
    found: list[str] = []
    items: list[str] = []
    for indented, run in groupby(text.split("\n"), lambda line: line.startswith(" ")):
        run_lines = list(run)
        if indented and items:  # an item of a list goes on
            items[-1] += " " + " ".join(line.strip() for line in run_lines)
        elif indented:
            found.append("::\n\n" + "\n".join(f"    {line}" for line in run_lines))
        else:
            for line in run_lines:
                if line.startswith("- "):
                    items.append(line[2:])
                elif items:
                    items[-1] += " " + line
                else:
                    found.append(line)
    prose = [part for part in found if not part.startswith("::")]
    examples = [part for part in found if part.startswith("::")]
    paragraph = [escaped(" ".join(prose))] if " ".join(prose).strip() else []
    listed = ["\n".join(f"- {escaped(item)}" for item in items)] if items else []
    return paragraph + examples + listed


def escaped(text: str) -> str:
    """Text on one line without marks of reStructuredText, except for code between backticks."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        parts = [text.replace("`", "'")]
    plain = [re.sub(r"([*|_\\])", r"\\\1", part).replace("::", r":\:") for part in parts]
    code = [rf"\ ``{part}``\ " if part == part.strip() and part else "" for part in parts]
    # The escaped space keeps a first word such as "1." or "-" from being a mark.
    return r"\ " + "".join(code[n] if n % 2 else plain[n] for n in range(len(parts)))


def fields(cls: type) -> str:
    """A list of a dataclass's fields: name, default value, and the comment beside or above it."""
    comments = field_comments(cls)
    lines = []
    for field in dataclasses.fields(cls):
        default = "" if field.default is dataclasses.MISSING else f" = `{literal(field.default)}`"
        comment = comments.get(field.name, "")
        lines.append(f"- **{field.name}**{escaped(default + (': ' if comment else '') + comment)}")
    return "\n".join(lines)


def field_comments(cls: type) -> dict[str, str]:
    """The comment of each field in the source of a dataclass and of those that it inherits from."""
    parts = [own_comments(one) for one in reversed(cls.__mro__) if dataclasses.is_dataclass(one)]
    return {name: comment for part in parts for name, comment in part.items()}


@functools.cache  # a class that many inherit from is read once
def own_comments(cls: type) -> dict[str, str]:
    """The comment of each field that the dataclass itself declares."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(cls).splitlines():
        if line.startswith("    # "):
            above.append(line.strip("# "))
            continue
        if match := FIELD.match(line):
            _, _, beside = line.partition("  # ")
            found[match[1]] = beside or " ".join(above)
        above = []
    return found


def literal(value: Any) -> str:
    """A default value as a short text without backticks."""
    text = value.__qualname__ if inspect.isfunction(value) else repr(value)
    return text.replace("`", "'") if len(text) <= 60 else f"{type(value).__name__}(…)"
