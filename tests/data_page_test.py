"""docs/data.md: its walk from raw files to a run on a mixture, as it is written, in an empty
folder."""

import json
import pydoc_data.topics
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from chaos_runs import Commands

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "data.md").read_text()
SECTION = PAGE.partition("## From raw files to a run")[2].partition("\n## ")[0]
CORPUS = PAGE.partition("### A corpus, cleaned: `prepare`")[2]
FILES = dict(re.findall(r"`(\w+\.py)`:\n```python\n(.*?)```", SECTION, re.DOTALL))
COMMANDS = re.findall(r"```\nuv run (?:--extra \w+ )?(.*?)\n```", SECTION, re.DOTALL)
# The page's block holds the data alone.
CONFIG = """
from bigmodel_jax.config import Config
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken


def get_config():
    return Config(LlamaConfig.tiny(), NextToken(), data)
"""


def test_the_walk_has_every_station():
    assert list(FILES) == ["raw.py", "mixture.py"]
    stations = [" ".join(command.split()[:2]) for command in COMMANDS]
    assert stations == [
        "python raw.py",
        "launch.py prepare",
        "launch.py data",
        *["launch.py train"] * 2,
        "launch.py data",
    ]


@pytest.mark.slow
def test_the_walk_does_what_the_page_says(tmp_path, monkeypatch):
    pytest.importorskip("rensa")
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
    raw, *others = (shlex.split(command.removeprefix("python ")) for command in COMMANDS)
    subprocess.run([sys.executable, *raw], cwd=tmp_path, check=True)
    with Commands(tmp_path / "said", cwd=tmp_path) as commands:
        for _, *args in others:
            said = commands.ran(*args)
    cards = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("corpus-*/*/data_card.json")]
    assert sorted(card["licence"] for card in cards) == ["PSF License", "public domain"]
    speeches = next(card for card in cards if card["licence"] == "public domain")
    assert {rule for step in speeches["steps"] for rule in step["dropped"]} >= {"exact duplicate", "near duplicate"}
    assert all(card["tokens"]["train"]["tokens"] for card in cards)
    assert len(list((tmp_path / "cache").glob("corpus-*/*/data_card.html"))) == 2
    assert "as remembered" in said
    run = tmp_path / "runs" / "mixture"
    assert len(list((run / "data_cards").iterdir())) == 2
    page = (run / "report.html").read_text()
    assert "speeches-0.jsonl and 1 more" in page
    assert "manuals.jsonl" in page
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-2])
    assert last["step"] == 30
    assert last["mixture/speeches/examples"] + last["mixture/manuals/examples"] == 240
    evaluated = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"eval/loss", "eval/loss/speeches", "eval/loss/manuals"} <= evaluated.keys()
    assert len(json.loads((run / "config.json").read_text())["data"]["stages"]) == 3


@pytest.mark.exhaustive  # eight processes import their packages
def test_the_corpus_is_prepared_as_the_page_says(tmp_path, monkeypatch):
    for name in ("rensa", "py3langid", "ftfy"):
        pytest.importorskip(name)
    import pyarrow

    block, command = re.search(r"```python\n(.*?)```.*?launch.py (prepare corpus.py .*?)\n", CORPUS, re.DOTALL).groups()
    # So few documents need a larger share for validation.
    (tmp_path / "corpus.py").write_text(block.replace("0.01", "0.2") + CONFIG)
    crawl, benchmarks = tmp_path / "crawl", tmp_path / "benchmarks"
    texts = [*pydoc_data.topics.topics.values()][:40]
    benchmarks.mkdir()
    (benchmarks / "questions.jsonl").write_text(json.dumps({"text": texts[0]}) + "\n")
    crawl.mkdir()
    lines = [json.dumps({"text": text, "site": f"{n}.org"}) + "\n" for n, text in enumerate(texts)]
    with pyarrow.output_stream(crawl / "one.jsonl.zst") as file:
        file.write("".join(lines).encode())
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
    with Commands(tmp_path / "said", cwd=tmp_path) as commands:
        commands.ran(*shlex.split(command))
    (card,) = (json.loads(path.read_text()) for path in (tmp_path / "cache").glob("corpus-*/*/data_card.json"))
    assert card["licence"] == "as the crawl's terms say"
