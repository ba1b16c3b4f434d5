"""docs/python.md: its snippets, one after another, as they stand."""

import re
from pathlib import Path

import pytest
from page_commands_test import DEVICES, see

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_the_snippets_of_the_page_run_and_say_what_they_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    see(DEVICES[:1], monkeypatch)  # eight devices on a few cores are slow
    known: dict = {}
    for snippet in SNIPPETS:
        exec(compile(snippet, "docs/python.md", "exec"), known)
    said = capsys.readouterr().out
    assert "(1, 16, 64)" in said
    assert known["found"]["residual"].shape == (2, 1, 16, 32)
    assert known["maps"].shape == (2, 1, 4, 16, 16)
    losses = [float(line.split()[1]) for line in said.splitlines() if re.fullmatch(r"\d+ \d+\.\d+", line)]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert known["at"] == 10
    assert (tmp_path / "runs" / "ten" / "report.html").is_file()
