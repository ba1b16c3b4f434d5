"""Environments of converters: their pins, the commands that make them, and what is said where that
fails."""

import os
import re
import stat
import subprocess
import sys

import pytest

from bigmodel_jax.export import converter_env

NAMES = ("onnx", "litert")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "converters"


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_package_is_pinned_to_one_version(name):
    lines = [line for line in (converter_env.PINS / f"{name}.txt").read_text().splitlines() if line[0] != "#"]
    wrong = [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line.replace("_", "-").lower())]
    assert not wrong
    assert len({line.partition("==")[0] for line in lines}) == len(lines)


def test_the_pins_of_jax_are_those_of_the_lock():
    here = {name: __import__(name).__version__ for name in ("jax", "jaxlib", "flax", "numpy")}
    assert {name: converter_env.version("onnx", name) for name in here} == here


def test_other_pins_are_another_environment(empty_cache, tmp_path, monkeypatch):
    before = converter_env.folder("litert")
    (tmp_path / "litert.txt").write_text("numpy==2.5.5\n")
    monkeypatch.setattr(converter_env, "PINS", tmp_path)
    assert before.parent == converter_env.folder("litert").parent == empty_cache
    assert before != converter_env.folder("litert")


def test_without_uv_the_line_says_how_to_get_it(empty_cache, monkeypatch):
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match=r"^export: --format onnx needs uv, .*: pip install uv$"):
        converter_env.ensure("onnx")


def test_a_network_that_is_missing_is_one_line_and_leaves_nothing(empty_cache, tmp_path, monkeypatch):
    said = "echo 'error: Request failed after 3 retries' >&2; echo '  cause: dns error' >&2; exit 2"
    monkeypatch.setenv("UV", str(script(tmp_path / "uv", said)))
    with pytest.raises(ValueError, match=r"^export: --format litert: uv could not .*: error: Request failed[^\n]*$"):
        converter_env.ensure("litert")
    assert [path.name for path in empty_cache.iterdir() if path.is_dir()] == []


def test_an_environment_is_made_once_of_its_pins_alone(empty_cache, tmp_path, monkeypatch, capfd):
    log = tmp_path / "log"
    made = f'echo "$@" >> {log}; for last; do :; done; case "$1" in venv) mkdir -p "$last/bin";; esac'
    monkeypatch.setenv("UV", str(script(tmp_path / "uv", made)))
    assert converter_env.ensure("litert") == converter_env.ensure("litert") == converter_env.folder("litert")
    venv, install = log.read_text().splitlines()
    assert venv.startswith("venv ")
    assert sys.executable in venv
    assert re.fullmatch(r"pip install --no-deps .*pins/litert.txt", install)
    assert capfd.readouterr().err.count("uv makes an environment for --format litert, once") == 1


def test_a_converter_that_dies_is_one_line(empty_cache, monkeypatch):
    python = converter_env.folder("litert") / "bin" / "python"
    python.parent.mkdir(parents=True)
    script(python, "echo first >&2; echo 'Fatal: out of memory' >&2; exit 134")
    with pytest.raises(ValueError, match=r"^export: --format litert: .* code 134: Fatal: out of memory$"):
        converter_env.run("litert", "litert_worker", {})


def test_a_worker_sees_this_package_and_nothing_else_of_ours(empty_cache, monkeypatch, tmp_path):
    python = converter_env.folder("litert") / "bin" / "python"
    python.parent.mkdir(parents=True)
    script(python, 'echo "{\\"path\\": \\"$PYTHONPATH\\", \\"home\\": \\"$VIRTUAL_ENV\\"}" > "$4"')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
    root = str(converter_env.Path(converter_env.bigmodel_jax.__file__).parents[1])
    assert converter_env.run("litert", "litert_worker", {}) == {"path": root, "home": ""}


def test_the_workers_need_no_jax_where_there_is_none():
    """The environment of LiteRT has no JAX, so its worker must import nothing of this package that
    imports JAX."""
    code = "import sys; sys.modules['jax'] = None; import bigmodel_jax.export.compared"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
