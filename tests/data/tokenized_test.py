"""Shards of tokens: the batches of one stream in memory, the same bytes from any number of
processes, damage in one line."""

import dataclasses
import hashlib
import json
import logging
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from grids import few

from bigmodel_jax.core import processes
from bigmodel_jax.data import ArrayRecordFiles, Corpus, TableFiles, TextData, TextPairData, TokenizerConfig
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.text import packing, text, token_shards, tokenized

R = random.Random(0)
TEXTS = [
    " ".join(R.choices(["alpha", "beta", "gamma", "naïve", "日本"], k=R.choice((1, 3, 40, 3000)))) for _ in range(35)
]


@dataclasses.dataclass(frozen=True)
class Small(Corpus):
    """A corpus with some records a shard."""

    def job(self, root):
        return dataclasses.replace(super().job(root), shard_bytes=2000)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    return TextData(
        source=Small(TableFiles(str(path))),
        tokenizer=TokenizerConfig("bytes"),
        cache_dir=str(tmp_path / "c"),
        seq_len=64,
    )


def shards(data):
    return token_shards.read_manifest(text.tokens_folder(data, "train"))["shards"]


def sha256(batch):
    digest = hashlib.sha256()
    for name, value in sorted(batch.items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return digest.hexdigest()


def files(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("how", ["concat", "first_fit", "best_fit", "none"])
def test_batches_over_shards_are_those_of_one_stream_in_memory(data, how):
    rows = dataclasses.replace(data, packing=how).open("train")
    tok = text.tokenizer(data)
    pieces = [[tok.separator, *tok.encode(t)] for t in TEXTS]
    stream = np.concatenate([*pieces, [tok.separator]])
    offsets = np.cumsum([0, *map(len, pieces)])
    plan = packing.make_plan(how, offsets, 64)
    folder = text.tokens_folder(data, "train")
    assert 5 < len(token_shards.read_manifest(folder)["shards"]) < len(TEXTS) / 2
    np.testing.assert_array_equal(rows.stream[:], stream)
    np.testing.assert_array_equal(rows.offsets, offsets)
    indices = np.random.default_rng(0).permutation(plan.num_rows)
    noise = np.zeros(len(indices), np.uint64)
    expected = packing.collate(stream.astype(np.uint16), plan, indices, 64, offsets, tok.separator)
    assert sha256(rows.batch(indices, noise)) == sha256(expected)


def test_the_stream_is_indexed_as_an_array_is(data):
    stream = data.open("train").stream
    whole = stream[np.arange(len(stream))]
    np.testing.assert_array_equal(np.concatenate(list(stream.parts())), whole)
    assert len(whole) == len(stream)
    assert len(whole) > 3 * token_shards.BLOCK
    places = np.random.default_rng(0).integers(0, len(stream), (5, 40))
    np.testing.assert_array_equal(stream[places], whole[places])
    np.testing.assert_array_equal(stream[10:10], whole[10:10])
    border = int(np.cumsum([s["tokens"] + s["documents"] for s in shards(data)])[1])  # between two shards
    for a, b in ((4000, 9000), (border - 3, border), (border, border + 3), (border - 9000, border + 9000), (-5, None)):
        np.testing.assert_array_equal(stream[a:b], whole[a:b])
    np.testing.assert_array_equal(stream[9000:10:-7], whole[9000:10:-7])
    np.testing.assert_array_equal(stream[10:9000:7], whole[10:9000:7])
    assert stream[len(stream) - 1] == 0
    with pytest.raises(IndexError, match=f"places 0 to {len(stream)} of a stream of {len(stream)} tokens"):
        stream[np.array([0, len(stream)])]


def test_more_shards_than_files_may_be_open(data, monkeypatch):
    whole = data.open("train").stream[:]
    monkeypatch.setattr("bigmodel_jax.data.text.token_stream.OPEN", 2)
    stream = data.open("train").stream
    for _ in range(2):
        np.testing.assert_array_equal(stream[:], whole)


@pytest.mark.exhaustive
def test_two_processes_give_the_bytes_of_one(data, tmp_path):
    one = text.encoded_folder(data, "train")
    other = dataclasses.replace(data, cache_dir=str(tmp_path / "other"))
    # Shards are read where they lie: the second cache takes the first one's.
    os.makedirs(other.root())
    os.symlink(data.root() / "corpus-3", other.root() / "corpus-3")
    assert files(one) == files(text.encoded_folder(other, "train", workers=2))
    assert {"00000.tokens.array_record", "00004.index.array_record", "manifest.json"} <= files(one).keys()


@pytest.mark.parametrize(("count", "hosts"), [(1, 1), (7, 1), (7, 2), (2, 3), (9, 4)])
def test_hosts_begin_with_shards_of_their_own_and_miss_none(count, hosts):
    orders = [tokenized.turns(count, host, hosts) for host in range(hosts)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    for host, order in enumerate(orders):
        own = list(range(host, count, hosts))
        assert order[: len(own)] == own
    assert tokenized.turns(5, 1, 2) == [1, 3, 4, 2, 0]


def test_what_a_failure_left_is_kept_and_the_rest_is_made(data, monkeypatch):
    expected = files(text.encoded_folder(data, "train"))
    folder = text.tokens_folder(data, "train")
    for name in ("manifest.json", *(n for n in expected if n[:5] in ("00001", "00003"))):
        (folder / name).unlink()
    (folder / "00001.tokens.array_record.partial-1-ab").write_bytes(b"half")
    written = []
    real = token_shards.write
    monkeypatch.setattr(token_shards, "write", lambda f, n, *a: (written.append(n), real(f, n, *a)))
    assert files(text.encoded_folder(data, "train")) == expected
    assert written == [1, 3]
    assert files(text.encoded_folder(data, "train")) == expected
    assert written == [1, 3]


def test_a_host_of_a_job_makes_its_own_shards_first_and_the_first_host_what_is_no_work_of_many(data, monkeypatch):
    calls, real = [], token_shards.write
    monkeypatch.setattr(token_shards, "write", lambda f, n, *a: (calls.append(n), real(f, n, *a)))
    monkeypatch.setattr(processes, "place", lambda: (1, 2))
    monkeypatch.setattr(processes, "in_turn", lambda name, make: (calls.append(name), make()))
    text.tokenize_together(data)
    made = tokenized.turns(len(shards(data)), 1, 2)
    assert calls == ["texts", *made]
    assert len(made) > 3
    monkeypatch.setattr(processes, "place", lambda: (0, 1))
    text.tokenize_together(data)
    assert len(calls) == 1 + len(made), "a process alone tokenizes what it opens"


def flip(path):
    content = bytearray(path.read_bytes())
    content[300] ^= 1  # in the first block; the file's end is padding
    path.write_bytes(content)


TOKENS, INDEX = "00002.tokens.array_record", "00002.index.array_record"
DAMAGES = {
    "tokens gone": (lambda f: (f / TOKENS).unlink(), "tokens.array_record is missing"),
    "tokens cut": (lambda f: os.truncate(f / TOKENS, 100), r"tokens\.array_record has 100 bytes, not \d+"),
    "index gone": (lambda f: (f / INDEX).unlink(), ""),
    "index cut": (lambda f: os.truncate(f / INDEX, 100), "is not a whole ArrayRecord file"),
    "index of another": (
        lambda f: (f / INDEX).write_bytes((f / INDEX.replace("2", "3")).read_bytes()),
        "is the index of another shard",
    ),
    "a bit": (lambda f: flip(f / TOKENS), f"{TOKENS} has other content"),
    "manifest cut": (lambda f: os.truncate(f / "manifest.json", 10), ""),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_shard_is_one_line_and_is_made_again(data, name, caplog, monkeypatch):
    monkeypatch.setattr(tokenized, "_read", set())
    damage, says = DAMAGES[name]
    folder = text.encoded_folder(data, "train")
    expected = files(folder)
    damage(folder)
    assert len(data.open("train")) > 0
    assert files(folder) == expected
    if says:
        (record,) = (r for r in caplog.records if r.levelno >= logging.WARNING)
        assert record.getMessage().startswith(f"shard 2 of {folder} is made again: ")
        assert re.search(says, record.getMessage())
        assert "\n" not in record.getMessage()


def test_a_flipped_bit_of_much_data_is_one_line_when_its_block_is_read_and_verify_finds_it(data, monkeypatch):
    monkeypatch.setattr(tokenized, "READ_THROUGH", 0)
    folder = text.encoded_folder(data, "train")
    flip(folder / TOKENS)
    rows = data.open("train")
    with pytest.raises(
        ValueError, match=rf"^{folder / TOKENS} is damaged; delete it, and the same command makes it again: .*"
    ):
        rows.stream[:]
    assert token_shards.changed(folder) == [(2, folder / TOKENS)]


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(data):
    data.source.shards("train", data.root(), BadRecords(0))
    text.tokenizer_folder(data)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # a file that may not grow: EFBIG for ENOSPC
    try:
        with pytest.raises(ValueError, match=r"^\S+00000\.tokens\.array_record cannot be written: .*File too large.*"):
            text.encoded_folder(data, "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not [p.name for p in text.tokens_folder(data, "train").iterdir() if p.suffix != ".lock"]
    assert data.open("train").meta["documents"] == len(TEXTS)


def test_bad_records_of_all_shards_count_together(data, tmp_path):
    bad = {7: " ", 20: " ", 30: 5}
    lines = [json.dumps({"text": bad.get(i, t)}) for i, t in enumerate(TEXTS)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    shards = ArrayRecordFiles(f"{data.source.folder(data.root())}/train-*.array_record")
    data.source.shards("train", data.root(), BadRecords(0))
    for source in (data.source, shards):
        given = dataclasses.replace(data, source=source)
        rows = dataclasses.replace(given, max_bad_records=3).open("train")
        assert [reason for _, reason in rows.meta["bad_records"]] == ["empty", "empty", "no text"]
        assert rows.meta["documents"] == len(TEXTS) - 3
        with pytest.raises(
            ValueError, match=r"train-\d+\.array_record record \d+: no text \(after 2 others, data\.max_"
        ):
            dataclasses.replace(given, max_bad_records=2).open("train")


def test_pairs_of_texts_over_shards_are_those_of_one(data, tmp_path):
    rows = [json.dumps({"input": f"in {i}", "target": t[:90]}) for i, t in enumerate(TEXTS)]
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    source = TableFiles(str(tmp_path / "p.jsonl"))
    how = {"tokenizer": data.tokenizer, "cache_dir": data.cache_dir, "too_long": "cut"}
    one, many = (TextPairData(source=s, **how).open("train") for s in (source, Small(source)))
    indices = np.random.default_rng(0).permutation(len(one))
    assert sha256(many.batch(indices, None)) == sha256(one.batch(indices, None))


KILLED = """
import sys
sys.path[:0] = {folders!r}
import tokenized_test as t
from bigmodel_jax.data.text import text
data = t.TextData(source=t.Small(t.TableFiles({path!r})), tokenizer=t.TokenizerConfig("bytes"), cache_dir={cache!r})
text.encoded_folder(data, "train", workers={workers})
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", few((1, 2), 2))
def test_killed_anywhere_it_goes_on_to_the_same_bytes(data, tmp_path, workers):
    """SIGKILL comes at moments between the first shard and the last. Each start keeps the shards of
    those before."""
    expected = files(text.encoded_folder(data, "train"))
    cache = tmp_path / "killed"
    folders = [str(folder) for folder in Path(__file__).parents[:2]]  # with tests/grids.py
    names = {"folders": folders, "path": str(tmp_path / "t.jsonl"), "cache": str(cache)}
    code = KILLED.format(**names, workers=workers)
    killed, folder = dataclasses.replace(data, cache_dir=str(cache)), None
    for shards in (1, 3):
        process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        while process.poll() is None:
            folder = next(iter(cache.glob("text-2/*")), None)
            if folder and len(list(folder.glob("*.index.*"))) >= shards:
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.001)
        process.wait()
        assert shards > 1 or process.returncode == -signal.SIGKILL
    kept = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.index.array_record")}
    assert files(text.encoded_folder(killed, "train")) == expected
    assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}.items()
