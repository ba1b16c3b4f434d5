import os
import subprocess
import sys

import pytest

from bigmodel_jax.data import cache

BUILD = """
import sys, time
from pathlib import Path
from bigmodel_jax.data import cache
def write(folder):
    (folder / "started").touch()
    time.sleep(float(sys.argv[2]))
    (folder / "done").write_text(sys.argv[3])
    print("built", flush=True)
cache.build(Path(sys.argv[1]), write)
"""


def start(folder, seconds, content="x"):
    command = [sys.executable, "-c", BUILD, str(folder), str(seconds), content]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_key_is_of_facts_and_not_of_their_order():
    assert cache.key({"a": 1, "b": [2]}, "x") == cache.key({"b": [2], "a": 1}, "x")
    assert len({cache.key(1, 2), cache.key(2, 1), cache.key([1, 2]), cache.key("1", 2), cache.key(1, 2, None)}) == 5


@pytest.mark.slow
def test_two_processes_build_once(tmp_path):
    processes = [start(tmp_path / "data", 0.5, str(i)) for i in range(2)]
    outputs = [p.communicate(timeout=60)[0] for p in processes]
    assert sorted(outputs) == ["", "built\n"]
    assert (tmp_path / "data/done").exists()


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_is_used(tmp_path):
    process = start(tmp_path / "data", 60)
    while not list(tmp_path.glob("data.partial-*/started")):
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not (tmp_path / "data").exists()
    cache.build(tmp_path / "data", lambda folder: (folder / "done").touch())
    assert (tmp_path / "data/done").exists()


def test_a_failed_build_is_cleaned_up_and_tried_again(tmp_path):
    def fail(folder):
        (folder / "half").touch()
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        cache.build(tmp_path / "data", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["data.lock"]
    assert cache.build(tmp_path / "data", lambda folder: None).is_dir()


def test_the_first_of_two_hosts_wins(tmp_path):
    """The hosts share no lock: the other host's folder appears while this one writes."""

    def write(folder):
        (folder / "mine").touch()
        other = tmp_path / "data"
        other.mkdir()
        (other / "theirs").touch()

    assert os.listdir(cache.build(tmp_path / "data", write)) == ["theirs"]
    assert not list(tmp_path.glob("*.partial-*"))


@pytest.fixture
def sealed(tmp_path, monkeypatch):
    """(a folder that was built, the builder, how often it has been built): each call is a process's
    first."""
    built = []

    def write(folder):
        built.append(1)
        (folder / "tokens.bin").write_bytes(bytes(range(256)) * 40)
        (folder / "sub").mkdir()
        (folder / "sub" / "meta.json").write_text("{}")

    def build():
        monkeypatch.setattr(cache, "_checked", set())
        return cache.build(tmp_path / "data", write)

    return build(), build, built


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "one bit": lambda folder: flip(folder / "tokens.bin", 777),
    "the last byte": lambda folder: flip(folder / "tokens.bin", -1),
    "cut": lambda folder: os.truncate(folder / "tokens.bin", 100),
    "longer": lambda folder: (folder / "tokens.bin").write_bytes((folder / "tokens.bin").read_bytes() + b"x"),
    "gone": lambda folder: (folder / "sub" / "meta.json").unlink(),
    "one more": lambda folder: (folder / "other").touch(),
    "no seal": lambda folder: (folder / cache.SEAL).unlink(),
    "seal cut": lambda folder: os.truncate(folder / cache.SEAL, 9),
    "seal no object": lambda folder: (folder / cache.SEAL).write_text("[]"),
    "seal empty": lambda folder: (folder / cache.SEAL).write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_is_named_and_made_again(sealed, damage, caplog):
    folder, build, built = sealed
    whole = (folder / "tokens.bin").read_bytes()
    DAMAGES[damage](folder)
    assert build() == folder
    assert len(built) == 2
    assert (folder / "tokens.bin").read_bytes() == whole
    assert f"{folder} is damaged and is made again: " in caplog.text


def test_whole_data_is_not_made_again_and_is_read_through_once_a_process(sealed, monkeypatch):
    folder, build, built = sealed
    assert build() == folder
    monkeypatch.setattr(cache, "_damage", lambda folder: pytest.fail("read twice"))
    assert cache.build(folder, lambda out: pytest.fail("made twice")) == folder
    assert len(built) == 1


def test_root(monkeypatch):
    monkeypatch.setenv("BIGMODEL_CACHE", "/a")
    assert (str(cache.root()), str(cache.root("/b"))) == ("/a", "/b")
