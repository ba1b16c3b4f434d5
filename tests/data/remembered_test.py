"""Raw files are read once while size and time of change stay, and again when that is asked for."""

import os
import time

import pytest

from bigmodel_jax import cli
from bigmodel_jax.data import JsonlFiles, cache
from bigmodel_jax.data.sources import remembered

OLD = time.time_ns() - 10**11


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(remembered, "LEAST", 0)
    return written(tmp_path / "a.jsonl", '{"text": "one"}\n')


def written(path, content, mtime=OLD):
    path.write_text(content)
    os.utime(path, ns=(mtime, mtime))
    return path


def fingerprint(path, root, monkeypatch, reads):
    """The fingerprint in a new process, which remembers nothing. `reads` counts the files read."""
    monkeypatch.setattr(cache, "_digests", {})
    real = cache.hashlib.file_digest
    with monkeypatch.context() as patch:
        patch.setattr(cache.hashlib, "file_digest", lambda *args: reads.append(1) or real(*args))
        return JsonlFiles(str(path)).fingerprint("train", root)


def test_a_second_start_reads_nothing_and_another_time_reads_again(path, tmp_path, monkeypatch):
    root, reads = tmp_path / "cache", []
    first = fingerprint(path, root, monkeypatch, reads)
    assert fingerprint(path, root, monkeypatch, reads) == first
    assert len(reads) == 1
    os.utime(path, ns=(OLD + 1, OLD + 1))
    assert fingerprint(path, root, monkeypatch, reads) == first
    assert len(reads) == 2
    written(path, '{"text": "six"}\n', OLD + 2)
    assert fingerprint(path, root, monkeypatch, reads) != first
    assert len(reads) == 3


def test_a_file_that_changes_while_its_digest_is_made_is_read_again(path, tmp_path, monkeypatch):
    root, reads, real = tmp_path / "cache", [], cache.sha256
    with monkeypatch.context() as patch:
        digest = lambda name: (real(name), written(path, '{"text": "six"}\n', OLD + 1))[0]  # noqa: E731
        patch.setattr(cache, "sha256", digest)
        before = fingerprint(path, root, monkeypatch, reads)
    assert fingerprint(path, root, monkeypatch, reads) != before
    assert len(reads) == 2


def test_a_file_of_this_moment_and_little_data_are_not_remembered(path, tmp_path, monkeypatch):
    root, reads = tmp_path / "cache", []
    written(path, '{"text": "two"}\n', time.time_ns())
    for _ in range(2):
        fingerprint(path, root, monkeypatch, reads)
    monkeypatch.setattr(remembered, "LEAST", 1000)
    written(path, '{"text": "two"}\n')
    for _ in range(2):
        fingerprint(path, root, monkeypatch, reads)
    assert len(reads) == 4
    assert not root.exists()


def test_a_memory_that_is_damaged_or_cannot_be_written_is_as_none(path, tmp_path, monkeypatch, caplog):
    root, reads = tmp_path / "cache", []
    first = fingerprint(path, root, monkeypatch, reads)
    (memory,) = (root / "digests-1").iterdir()
    for damaged in ("{", "[1]", '{"a.jsonl": 3}'):
        memory.write_text(damaged)
        assert fingerprint(path, root, monkeypatch, reads) == first
    assert len(reads) == 4
    (tmp_path / "file").write_text("")
    assert fingerprint(path, tmp_path / "file", monkeypatch, reads) == first
    assert "are not remembered" in caplog.text


def test_verify_reads_all_again_and_says_what_has_changed(path, tmp_path, monkeypatch, capsys):
    own = tmp_path / "own.py"
    own.write_text(
        "from bigmodel_jax.config import Config\n"
        "from bigmodel_jax.data import JsonlFiles, TextData, TokenizerConfig\n"
        "from bigmodel_jax.models import LlamaConfig\n"
        "from bigmodel_jax.objectives import NextToken\n"
        "def get_config():\n"
        f"    data = TextData(source=JsonlFiles({str(path)!r}), tokenizer=TokenizerConfig('bytes'))\n"
        "    return Config(LlamaConfig(), NextToken(), data)\n"
    )
    args = ["data", str(own), "--verify", "--data.cache_dir", str(tmp_path / "cache")]
    for said in (" (1 not remembered before)", ""):
        cli.main(args)
        assert capsys.readouterr().out == f"1 files, 16 bytes: as remembered{said}\n"
    first = fingerprint(path, tmp_path / "cache", monkeypatch, [])
    written(path, '{"text": "six"}\n')  # of the same size and time
    assert fingerprint(path, tmp_path / "cache", monkeypatch, []) == first, "which is what --verify is for"
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert "a.jsonl has other content: 16 bytes, sha256 " in out
    assert "though its size and time of change are the same" in out
    assert err.startswith("error: --verify: 1 of the files")
    assert fingerprint(path, tmp_path / "cache", monkeypatch, []) != first
    cli.main([*args, "--verify", "True"])
