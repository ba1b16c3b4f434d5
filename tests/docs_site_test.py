"""The site of the pages and docstrings: every page is listed, and Sphinx builds it without a
warning."""

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_every_page_is_listed_once():
    blocks = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    listed = [line for block in blocks for line in block.splitlines() if line and not line.startswith(":")]
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert sorted(listed) == sorted(pages | {"api/bigmodel_jax"})


class Page(HTMLParser):
    """The links of an HTML page, and the names that links to it may give."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.links += [found[key] for key in ("href", "src") if found.get(key)]
        self.names |= {found[key] for key in ("id", "name") if found.get(key)}


def wrong_links(site: Path) -> list[str]:
    """Links between the files of a site that lead to no file, or to no place in it."""
    pages = {path.resolve(): Page(path.read_text()) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"\w+:|//", link):
                continue
            name, _, place = unquote(link).partition("#")
            there = (path.parent / name.split("?")[0]).resolve() if name else path
            if not there.exists():
                found.append(f"{path.relative_to(site.resolve())}: {link} is not there")
            elif place and there in pages and place not in pages[there].names:
                found.append(f"{path.relative_to(site.resolve())}: {link} has no such place")
    return found


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="one"></h1><a href="#one"></a><a href="a.html#two"></a><a href="b.html"></a>'
    )
    assert wrong_links(tmp_path) == ["a.html: a.html#two has no such place", "a.html: b.html is not there"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="the extra docs is not installed")
def test_the_site_is_built_without_a_warning_and_its_links_lead_somewhere(tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "trees", DOCS, site]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-8000:]
    assert (site / "api" / "bigmodel_jax.models.html").is_file()
    assert "vocab_size" in (site / "api" / "bigmodel_jax.models.html").read_text()
    assert wrong_links(site) == []
