"""The "From Python" passages of docs/: each runs as it is pasted, in a folder with the runs that it
names."""

import re
import shutil
from pathlib import Path

import pytest
from page_commands_test import call
from page_stand_ins import make_stand_ins

ROOT = Path(__file__).parents[1]
PAGES = ("eval", "report", "explain", "generate", "tune")


def snippets(page: str) -> list[str]:
    """Snippets of the page's sections "From Python". Later snippets go on with the names of the
    first."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    sections = re.findall(r"^#+ From Python\n(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE)
    return [re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0] for section in sections]


def test_each_page_has_one():
    assert {page: len(snippets(page)) for page in PAGES} == dict.fromkeys(PAGES, 1) | {"tune": 2}


@pytest.mark.slow
def test_each_snippet_runs_as_it_is_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_stand_ins(tmp_path, "docs/generate")
    call("train configs/lm_tiny.py --train.steps 4", monkeypatch)  # on one device, as the snippets after it
    shutil.copytree("runs/lm_tiny", "runs/other")
    for page in PAGES:
        for code in snippets(page):
            exec(compile(code, f"docs/{page}.md", "exec"), {"__name__": "__main__"})
    assert all((tmp_path / name).is_file() for name in ("both.html", "runs/mnist_mlp-rate/rate.html"))
    assert (tmp_path / "runs/digits-folds/folds.json").is_file()
