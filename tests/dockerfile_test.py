"""The Dockerfile: by its linter, by the files that it names, and built where a daemon is."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
IGNORED = (ROOT / ".dockerignore").read_text().split("\n")
ACCELERATORS = ("cpu", "gpu", "tpu")


def instructions() -> list[str]:
    lines = re.sub(r"\\\n", " ", TEXT).splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def copied() -> set[str]:
    """What the image takes of the repository."""
    found = set()
    for line in instructions():
        if line.startswith("COPY ") and "--from" not in line:
            found |= set(line.split()[1:-1])
    return found


def test_the_linter_finds_nothing(tmp_path):
    program = shutil.which("hadolint") or str(ROOT / ".venv" / "bin" / "hadolint")
    done = subprocess.run([program, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(TEXT.replace("WORKDIR /app", "WORKDIR app"))
    assert subprocess.run([program, str(wrong)], capture_output=True).returncode == 1, "the linter sees nothing"


def test_whatever_is_copied_exists_and_nothing_else_is_sent_to_the_builder():
    assert copied() == {"LICENSE", "README.md", "bigmodel_jax", "configs", "launch.py", "pyproject.toml", "uv.lock"}
    assert all((ROOT / path).exists() for path in copied())
    assert "*" in IGNORED
    assert {line[1:] for line in IGNORED if line.startswith("!")} == copied()


def test_the_packages_are_those_of_the_lock_and_the_extras_are_declared():
    syncs = [line for line in instructions() if "uv sync" in line]
    assert syncs
    assert all("--locked" in line and "--no-default-groups" in line for line in syncs)
    extras = set(re.findall(r"--extra (\w[\w-]*)", TEXT))
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"serve", "gpu", "tpu"} <= extras <= declared.keys()


def test_a_container_is_no_root_has_a_check_of_its_health_and_holds_no_secret():
    lines = instructions()
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001"]
    (health,) = [line for line in lines if line.startswith("HEALTHCHECK")]
    assert "http://127.0.0.1:8000/health" in health
    assert 'ENTRYPOINT ["python", "launch.py"]' in lines
    assert not re.search(r"(?i)(password|secret|token|api_?key)", TEXT)


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_there_is_a_stage_for_each_kind_of_machine(accelerator):
    assert f"FROM base AS {accelerator}" in instructions()


def _no_daemon() -> str:
    if not shutil.which("docker"):
        return "docker is not installed"
    done = subprocess.run(["docker", "info"], capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


@pytest.mark.slow
def test_the_image_builds_and_answers():
    if reason := _no_daemon():
        pytest.skip(f"no docker daemon: {reason}")
    build = ["docker", "build", "--quiet", "--build-arg", "ACCELERATOR=cpu", "-t", "bigmodel-jax:test", str(ROOT)]
    subprocess.run(build, check=True)
    said = subprocess.run(["docker", "run", "--rm", "bigmodel-jax:test", "--help"], capture_output=True, text=True)
    assert said.returncode == 0
    assert "serve" in said.stdout
    user = ["docker", "run", "--rm", "--entrypoint", "id", "bigmodel-jax:test", "-u"]
    assert subprocess.run(user, capture_output=True, text=True).stdout.strip() == "10001"
