"""docs/finetune.md: its commands, as they are written, in an empty folder."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from chaos_runs import Commands

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "finetune.md").read_text()
SECTION = PAGE.partition("## Ten commands")[2].partition("\n## ")[0]
COMMANDS = re.findall(r"```\nuv run (?:--extra \w+ )?(.*?)\n```", SECTION, re.DOTALL)


def test_there_are_ten_commands_from_import_to_an_export():
    assert len(COMMANDS) == 10
    assert COMMANDS[0].startswith("launch.py import")
    assert COMMANDS[8].startswith("launch.py export")


def test_every_config_on_the_page_ships():
    named = set(re.findall(r"configs/\w+\.py", PAGE))
    assert named
    assert all((ROOT / path).is_file() for path in named)


@pytest.mark.slow
def test_the_ten_commands_do_what_the_page_says(tmp_path):
    """The weights come from the cache, or from the index."""
    for name in ("configs", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    said = []
    with Commands(tmp_path / "said", cwd=tmp_path) as commands:
        for command in COMMANDS:
            program, *args = shlex.split(command)
            if program != "launch.py":
                subprocess.run([sys.executable, program, *args], cwd=tmp_path, check=True)
                said.append("")
                continue
            said.append(commands.ran(*args))
    before, after = said[3], said[6]
    assert f"```text\n{before}```" in SECTION
    assert f"```text\n{after}```" in SECTION
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
    assert (tmp_path / "exported" / "mine" / "model.safetensors").is_file()
