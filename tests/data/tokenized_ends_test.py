"""Processes and hosts that end the same split of tokens at one moment: one manifest, and nobody
fails."""

import json
import threading
import time

import pytest

from bigmodel_jax.core import files
from bigmodel_jax.data import JsonlFiles, TextData, TokenizerConfig
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.text import text, token_shards, tokenized


@pytest.fixture
def data(tmp_path):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(20)))
    data = TextData(
        source=JsonlFiles(str(tmp_path / "t.jsonl")), tokenizer=TokenizerConfig("bytes"), cache_dir=str(tmp_path / "c")
    )
    text.tokenizer_folder(data)
    return data


def test_of_processes_that_end_together_one_writes_the_manifest(data, monkeypatch):
    inside, written, failed = threading.Lock(), [], []
    write = token_shards.write_manifest

    def slow(folder, *args):
        assert inside.acquire(blocking=False), "two write at a time"
        time.sleep(0.2)
        write(folder, *args)
        written.append(folder)
        inside.release()

    def one():
        try:
            text.encoded_folder(data, "train")
        except Exception as error:
            failed.append(error)

    monkeypatch.setattr(token_shards, "write_manifest", slow)
    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert written == [text.tokens_folder(data, "train")]


def test_a_host_that_no_lock_reaches_may_have_ended_first(data, monkeypatch):
    replace, others = files.replace, []

    def after_another_host(path, content):
        if path.name == token_shards.MANIFEST and not others:
            others.append(path)
            replace(path, content)
            raise FileNotFoundError(2, "No such file or directory", str(path))  # the other has deleted our half
        replace(path, content)

    monkeypatch.setattr(files, "replace", after_another_host)
    folder = text.encoded_folder(data, "train")
    assert others == [folder / token_shards.MANIFEST]
    assert tokenized.is_whole(folder)
    assert data.open("train").meta["documents"] == 20


def test_a_manifest_that_cannot_be_written_is_an_error(data, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    data.source.shards("train", data.root(), BadRecords(0))
    monkeypatch.setattr(files, "replace", full)
    with pytest.raises(OSError, match="No space left on device"):
        text.encoded_folder(data, "train")
