"""A file is replaced whole or not at all."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bigmodel_jax.core import files


def test_a_replaced_file_has_the_new_content_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old")
    files.replace(path, "new é")
    assert path.read_bytes() == "new é".encode()
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_write_that_fails_half_way_keeps_the_old_content_and_names_the_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old")
    program = f"""
import resource, signal
from pathlib import Path
from bigmodel_jax.core import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    files.replace(Path({str(path)!r}), "x" * 5000)
except OSError as error:
    print(error.errno, error.filename)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(errno.EFBIG), str(path)]
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_writer_that_raises_keeps_the_old_content(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(KeyError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError("no such metric")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "gone" / "config.json"
    with pytest.raises(OSError, match="No such file") as raised:
        files.replace(path, "x")
    assert raised.value.filename == str(path)


def test_two_that_replace_one_file_at_once_do_not_meet(tmp_path):
    path = tmp_path / "config.json"
    with files.replacing(path) as first:
        first.write_text("first")
        with files.replacing(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["config.json"]


def test_what_a_killed_writer_left_is_deleted_when_it_is_old(tmp_path):
    old, young, other = (tmp_path / name for name in ("a.json.partial-1-ab", "a.json.partial-2-cd", "b.json"))
    for path in (old, young, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (1, 1))
    files.replace(tmp_path / "a.json", "whole")
    assert sorted(os.listdir(tmp_path)) == ["a.json", young.name, other.name]


def test_two_that_make_one_folder_at_once_do_not_meet(tmp_path):
    path = tmp_path / "deep" / "run"
    with pytest.raises(OSError, match="not empty"), files.new_folder(path) as first:
        (first / "a").write_text("first")
        with files.new_folder(path) as second:
            (second / "a").write_text("second")
        assert (first / "a").read_text() == "first"
    assert (path / "a").read_text() == "second"
    assert os.listdir(path.parent) == ["run"]


def test_an_old_half_made_folder_is_deleted_and_a_young_one_is_not(tmp_path):
    old, young = (tmp_path / f"run.partial-{i}-ab" / "checkpoints" for i in (1, 2))
    for folder in (old, young):
        folder.mkdir(parents=True)
        os.utime(folder.parent, (1, 1))
    os.utime(old, (1, 1))
    with files.new_folder(tmp_path / "run") as partial:
        (partial / "a").write_text("whole")
    assert sorted(os.listdir(tmp_path)) == ["run", young.parent.name]


def test_pages_figures_and_records_of_verbs_are_never_written_in_place():
    room = Path(files.__file__).parents[1]
    for path in [*(room / "report").rglob("*.py"), *(room / "verbs").rglob("*.py")]:
        assert not re.search(r"\.write_(text|bytes)\(", path.read_text()), f"{path} writes without core/files.py"
