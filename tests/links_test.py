"""Links between the pages lead somewhere: to a file, and to a heading in it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)


def anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it: lower case, words joined by dashes, other marks
    left out."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """The anchors of a page; a heading that is there again gets -1, -2, ..."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M):
        name = anchor(heading)
        found[name] = found.get(name, -1) + 1
    return {name if n == 0 else f"{name}-{n}" for name, count in found.items() for n in range(count + 1)}


def wrong(page: Path) -> list[str]:
    found = []
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, heading = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists():
            found.append(f"{page.name}: {target} is not there")
        elif heading and there.suffix == ".md" and heading not in anchors(there):
            found.append(f"{page.name}: {target} has no such heading")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_of_a_page_leads_somewhere(page):
    assert wrong(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One\n# One\n[a](#one) [a](#one-1) [b](#two) [c](gone.md)\n```\n[d](in-code.md)\n```\n")
    assert wrong(page) == ["page.md: #two has no such heading", "page.md: gone.md is not there"]


def test_the_files_that_the_guide_names_are_there():
    named = re.findall(r"`((?:tests|docs|bigmodel_jax)/[\w/]+(?:\.\w+)?)`", (ROOT / "CONTRIBUTING.md").read_text())
    inside = re.findall(r"`((?:\w+/)+\w+\.py)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert named
    assert inside
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert [name for name in inside if not any((base / name).exists() for base in (ROOT, ROOT / "bigmodel_jax"))] == []
