"""docs/deploy.md: its commands, as they are written, in an empty folder; those that need a daemon
are read."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import jobs
from chaos_runs import Commands

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "deploy.md").read_text()
SECTION = PAGE.partition("## Ten commands")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```\n(.*?)\n```$", re.sub(r"^```text\n.*?^```$", "", SECTION, flags=re.M | re.S), re.M | re.S)
NEEDS = "# needs a Docker daemon\n"
COMMANDS = [block.removeprefix(NEEDS) for block in BLOCKS]
OURS = {
    number: command.partition("launch.py ")[2] for number, command in enumerate(COMMANDS, 1) if "launch.py " in command
}


def test_there_are_ten_commands_from_a_run_to_a_container():
    assert len(BLOCKS) == 10
    assert [number for number, block in enumerate(BLOCKS, 1) if block.startswith(NEEDS)] == [8, 9]
    verbs = [command.split()[0] for command in OURS.values()]
    assert verbs == ["import", "quantize", "generate", "plan", "export", "serve", "submit"]


def test_the_extras_of_the_commands_are_declared():
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"--extra (\S+)", SECTION)) <= declared.keys()


def test_the_images_that_are_built_run_and_submitted_are_one():
    build, run, submit = (shlex.split(COMMANDS[number - 1]) for number in (8, 9, 10))
    image = build[build.index("-t") + 1]
    assert build[:2] == ["docker", "build"]
    name, _, accelerator = build[build.index("--build-arg") + 1].partition("=")
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"ARG {name}=" in dockerfile
    assert f"FROM base AS {accelerator}\n" in dockerfile
    assert build[-1] == "."
    assert submit[submit.index("--image") + 1] == image
    assert run[:2] == ["docker", "run"]
    serve = run[run.index(image) + 1 :]
    assert serve[:2] == ["serve", "runs/small"]
    assert serve[serve.index("--port") + 1] == "8000"
    assert run[run.index("-p") + 1].endswith(":8000")


def test_the_page_tells_of_vllm():
    assert "vllm serve exported/smollm2" in PAGE


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_do_what_the_page_says(tmp_path):
    """The test runs all commands but those that need a daemon. The server listens on a free port,
    and the weights come from the index's cache."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    with Commands(tmp_path / "said", cwd=tmp_path) as commands:
        ours = {number: shlex.split(command) for number, command in OURS.items()}
        for number in (1, 2):
            commands.ran(*ours[number])
        assert commands.ran(*ours[3]).strip()
        said = commands.ran(*ours[4]).splitlines()
        # The page shows the first columns of some lines.
        assert all(
            any(line.startswith(shown) for line in said)
            for shown in re.findall(r"^(?:FITS|tokens/s|largest).*$", SECTION, re.M)
        )
        commands.ran(*ours[5])
        assert (tmp_path / "exported" / "smollm2" / "model.safetensors").is_file()
        port = str(jobs.free_port())
        with commands.serving(port, *(word.replace("8000", port) for word in ours[6])):
            asked = shlex.split(COMMANDS[6].replace("8000", port))
            answer = subprocess.run(asked, capture_output=True, text=True, check=True)
            assert json.loads(answer.stdout)["choices"][0]["message"]["content"]
        commands.ran(*ours[10])
    assert (tmp_path / "runs" / "small" / "deployment.yaml").is_file()
