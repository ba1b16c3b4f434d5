"""Compressed files: read as the plain ones are, and one that is cut short is one line."""

import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from bigmodel_jax.data import (
    CaptionFiles,
    CsvFiles,
    JsonlFiles,
    TableFiles,
    TextData,
    TextFiles,
    TokenizerConfig,
    cache,
)
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.sources import opened
from bigmodel_jax.data.text import token_shards

LINES = [{"text": f"line {i} " + "x" * (i % 50), "n": i} for i in range(3000)]
CONTENT = "".join(json.dumps(line) + "\n" for line in LINES).encode()
# CompressedOutputStream writes one frame.
WRITE = {"": lambda content: content, ".gz": gzip.compress, ".zst": lambda content: _zstd(content)}


def _zstd(content):
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


def records(source, split="train"):
    return [record for _, record in source.records(split, None, BadRecords(0))]


@pytest.mark.parametrize("end", WRITE)
def test_each_kind_of_file_reads_the_same_compressed(end, tmp_path):
    def file(name, content):
        path = tmp_path / f"{name}{end}"
        path.write_bytes(WRITE[end](content))
        return str(path)

    jsonl = file("a.jsonl", CONTENT)
    assert records(JsonlFiles(jsonl)) == [{"text": line["text"]} for line in LINES]
    assert records(TableFiles(jsonl)) == LINES
    assert records(TableFiles(file("a.csv", b"\xef\xbb\xbftext,n\na,1\nb,2\n")))[1] == {"text": "b", "n": "2"}
    assert records(TableFiles(file("a.tsv", b"text\tn\na\t1\n"))) == [{"text": "a", "n": "1"}]
    assert records(CsvFiles(file("b.csv", b"x,label\n2,1\n")))[0]["label"] == 1
    assert records(TextFiles(file("a.txt", "schön".encode()))) == [{"text": "schön"}]


@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_frames_one_after_another_are_one_file(end, tmp_path):
    path = tmp_path / f"a.jsonl{end}"
    path.write_bytes(WRITE[end](CONTENT) * 2)
    assert len(records(TableFiles(str(path)))) == 6000


@pytest.mark.parametrize("end", [".gz", ".zst"])
@pytest.mark.parametrize("wrong", ["cut", "other"])
def test_a_file_that_is_cut_short_or_something_else_is_one_line(end, wrong, tmp_path):
    path, whole = tmp_path / f"a.jsonl{end}", WRITE[end](CONTENT)
    path.write_bytes(whole[: len(whole) // 2] if wrong == "cut" else CONTENT)
    for source in (TableFiles, JsonlFiles, TextFiles):
        with pytest.raises(ValueError, match=rf"^\S+a\.jsonl\{end} is cut short or damaged: [^\n]+$"):
            records(source(str(path)))


def test_parquet_is_not_compressed_twice(tmp_path):
    (tmp_path / "a.parquet.gz").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.parquet\.gz' must end in \.jsonl, .* also with \.gz or \.zst after it$"):
        records(TableFiles(str(tmp_path / "a.parquet.gz")))


def test_the_position_counts_bytes_on_disk(tmp_path):
    path, before = tmp_path / "a.jsonl.gz", opened.position()
    path.write_bytes(gzip.compress(CONTENT))
    rows = TableFiles(str(path)).records("train", None, BadRecords(0))
    next(rows)
    assert 0 < opened.position() - before <= path.stat().st_size
    list(rows)
    assert opened.position() - before == path.stat().st_size


def test_a_file_that_changes_while_it_is_read_is_one_line(tmp_path):
    """Prepared data lies under the digest, so records of another content must not get there."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(CONTENT)
    source = TableFiles(str(path))
    source.fingerprint("train", tmp_path)
    rows = source.records("train", tmp_path, BadRecords(0))
    next(rows)
    with open(path, "ab") as file:
        file.write(CONTENT)
    with pytest.raises(
        ValueError, match=r"^\S+a\.jsonl changed while the command ran; the same command reads it again$"
    ):
        list(rows)
    source.fingerprint("train", tmp_path)
    assert len(records(source)) == 2 * len(CONTENT.splitlines())


def test_a_file_that_changes_between_its_digest_and_its_preparing_is_one_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(CONTENT)
    source = TableFiles(str(path))

    def write(out):
        if not path.read_bytes().startswith(CONTENT * 2):
            path.write_bytes(CONTENT * 2)
        assert len(records(source)) == 2 * len(CONTENT.splitlines())

    source.fingerprint("train", tmp_path)
    with pytest.raises(
        ValueError, match=r"^\S+a\.jsonl changed while the command ran; the same command reads it again$"
    ):
        cache.build(tmp_path / "prepared", write)
    assert not (tmp_path / "prepared").exists()
    assert len(records(source)) == 2 * len(CONTENT.splitlines()), "what is not stored may be read"
    source.fingerprint("train", tmp_path)
    cache.build(tmp_path / "prepared", write)


def test_tokens_of_a_file_that_changed_after_its_digest_are_not_stored(tmp_path, monkeypatch):
    path, write = tmp_path / "a.jsonl", token_shards.write
    path.write_bytes(CONTENT)
    data = TextData(source=TableFiles(str(path)), tokenizer=TokenizerConfig("bytes"), cache_dir=str(tmp_path / "cache"))

    def late(*given):
        path.write_bytes(CONTENT * 2)
        return write(*given)

    monkeypatch.setattr(token_shards, "write", late)
    with pytest.raises(ValueError, match=r"^\S+a\.jsonl changed while the command ran"):
        data.open("train")


@pytest.mark.parametrize("source", [TextFiles, JsonlFiles, TableFiles, CsvFiles])
def test_a_file_that_the_disk_does_not_give_is_named(source, tmp_path):
    (tmp_path / "a.jsonl").symlink_to("/proc/self/mem")  # its first byte cannot be read
    with pytest.raises(ValueError, match=r"^\S+a\.jsonl cannot be read: Input/output error$"):
        records(source(str(tmp_path / "a.jsonl")))
    with pytest.raises(ValueError, match=r"^data\.source\.train: '\S+a\.jsonl' cannot be read: Input/output error$"):
        source(str(tmp_path / "a.jsonl")).fingerprint("train", tmp_path)


def test_a_parquet_file_with_damaged_pages_is_named_while_its_texts_are_tokenized(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [line["text"] for line in LINES]}), path)
    content = path.read_bytes()
    path.write_bytes(content[:1000] + b"\xff" * 100 + content[1100:])
    data = TextData(source=TableFiles(str(path)), tokenizer=TokenizerConfig("bytes"), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"^\S+/a\.parquet is cut short or damaged: [^\n]+$"):
        data.open("train")
    assert not list(tmp_path.rglob("*.tokens.array_record*")), "nothing half written"


def test_a_cell_beyond_csvs_limit_in_a_header_is_one_line(tmp_path):
    (tmp_path / "a.csv").write_text("x" * 200_000 + ",label\n1,2\n")
    for source in (TableFiles, CsvFiles, CaptionFiles):
        with pytest.raises(ValueError, match=r"^\S+a\.csv is not readable CSV: field larger than field limit [^\n]+$"):
            records(source(str(tmp_path / "a.csv")))


def test_a_text_of_a_parquet_file_that_is_not_utf8_is_a_bad_record(tmp_path):
    stored = pyarrow.array([b"one", b"\xff", b"three"])
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 3, stored.buffers())
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    source, bad = TableFiles(str(tmp_path / "a.parquet")), BadRecords(1)
    assert [record["text"] for _, record in source.records("train", None, bad)] == ["one", "three"]
    assert bad.skipped == [(f"{tmp_path}/a.parquet row 2", "not UTF-8 (invalid start byte at byte 0)")]
