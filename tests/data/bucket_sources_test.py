"""Sources of files read from a bucket what they read from a disk."""

import gzip
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from bigmodel_jax.core import paths
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.images.image_text import CaptionFiles
from bigmodel_jax.data.sources import remembered
from bigmodel_jax.data.sources.array_record_files import ArrayRecordFiles
from bigmodel_jax.data.sources.image_folders import ImageFolders
from bigmodel_jax.data.sources.sources import CsvFiles, JsonlFiles, TextFiles
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.sources.tar_files import TarFiles
from bigmodel_jax.data.text.question_answering import SquadFiles
from bigmodel_jax.data.text.text_classification import LabelledLines
from bigmodel_jax.data.text.token_labels import ConllFiles
from bucket_server import BUCKET


def _write(folder: Path) -> None:
    """Writes files of each kind, in which the order and the ends of lines matter."""
    import pyarrow
    from pyarrow import parquet

    (folder / "deep" / "er").mkdir(parents=True)
    for name, text in (("b.txt", "second"), ("a.txt", "first ü"), ("deep/er/c.txt", "third")):
        (folder / name).write_text(text)
    lines = "".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(300))
    (folder / "a.jsonl").write_text(lines)
    (folder / "z.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "a.csv").write_text("x,label\r\n1.5,0\r\n2.5,1\r\n")
    parquet.write_table(pyarrow.table({"text": ["p", "q"]}), folder / "a.parquet")
    writer = array_record_module.ArrayRecordWriter(str(folder / "a.array_record"), "group_size:1")
    writer.write(b'{"text": "in a record"}')
    writer.close()
    for number, name in enumerate(("a-b/one", "a/two", "a/in/three")):
        path = folder / "classes" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 40 * number, np.uint8)).save(path)
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(folder / "a.txt", "k.txt")
    (folder / "captions.tsv").write_text("image\ttext\nclasses/a/two.png\ttwo\n")
    (folder / "lines").write_text("good\t1\nbad\t0\n")
    (folder / "conll").write_text("a X\nb Y\n\nc X\n")
    qa = {"context": "c", "qas": [{"question": "q", "answers": []}]}
    (folder / "squad.json").write_text(json.dumps({"data": [{"paragraphs": [qa]}]}))


SOURCES = [
    TextFiles("*.txt"),
    TextFiles("**/*.txt,a.txt"),
    JsonlFiles("[a-z].jsonl*"),
    CsvFiles("a.csv"),
    TableFiles("a.parquet"),
    ArrayRecordFiles("*.array_record"),
    TarFiles("a.tar"),
    ImageFolders("classes", image_size=4),
    CaptionFiles("captions.tsv"),
    LabelledLines("lines"),
    ConllFiles("conll"),
    SquadFiles("squad.json"),
]


def _records(source, start: str, root: Path) -> list:
    """Its records with `start` before each of its patterns, names without it."""
    import dataclasses

    source = dataclasses.replace(source, train=",".join(f"{start}/{part}" for part in source.train.split(",")))
    found = list(source.records("train", root, BadRecords(0)))
    assert source.fingerprint("train", root) == source.fingerprint("train", root)
    return [(where.replace(f"{start}/", ""), _plain(record, start)) for where, record in found]


def _plain(record: dict, start: str) -> dict:
    return {k: v.tolist() if hasattr(v, "tolist") else str(v).replace(f"{start}/", "") for k, v in record.items()}


def test_each_source_reads_the_same_from_a_bucket(served, tmp_path):
    disk = tmp_path / "files"
    _write(disk)
    for path in sorted(p for p in disk.rglob("*") if p.is_file()):
        paths.write(f"gs://{BUCKET}/d/{path.relative_to(disk)}", path.read_bytes())
    for source in SOURCES:
        here = _records(source, str(disk), tmp_path)
        assert here, source
        assert _records(source, f"gs://{BUCKET}/d", tmp_path) == here, source
    assert (
        ImageFolders(f"gs://{BUCKET}/d/classes").labels()
        == ImageFolders(str(disk / "classes")).labels()
        == ("a", "a-b")
    )
    for name in ("a.jsonl", "b.txt"):
        assert cache.file_digest(f"gs://{BUCKET}/d/{name}") == cache.file_digest(disk / name)


def test_a_digest_is_remembered_until_the_object_is_another_one(served, tmp_path, monkeypatch):
    monkeypatch.setattr(remembered, "LEAST", 0)
    monkeypatch.setattr(cache, "settled", lambda changed: True)
    address = f"gs://{BUCKET}/a.txt"
    paths.write(address, b"one")
    first = remembered.digests([paths.remote(address)], tmp_path)
    cache._digests.clear()
    with monkeypatch.context() as patch:
        patch.setattr(cache, "sha256", lambda path: pytest.fail("it was read again"))
        assert remembered.digests([paths.remote(address)], tmp_path) == first
    paths.write(address, b"two")
    assert remembered.digests([paths.remote(address)], tmp_path) != first
    assert remembered.changed([paths.remote(address)], tmp_path) == ([], 1)


def test_what_is_not_there_or_refused_is_one_line(served, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"data\.source\.train: 'gs://bucket/no/\*' matches no file"):
        TextFiles(f"gs://{BUCKET}/no/*").paths("train")
    with pytest.raises(ValueError, match="'gs://bucket/no' holds no folders; each class needs one"):
        list(ImageFolders(f"gs://{BUCKET}/no").records("train", tmp_path, BadRecords(0)))
    with pytest.raises(ValueError, match="data.source.train = 'gs://other/x': there is no bucket 'other'"):
        paths.check("data.source.train", "gs://other/x", ("gs",))
    paths.write(f"gs://{BUCKET}/cut.jsonl.gz", gzip.compress(b"{}\n" * 9)[:-9])
    with pytest.raises(ValueError, match=r"gs://bucket/cut\.jsonl\.gz is cut short or damaged"):
        list(JsonlFiles(f"gs://{BUCKET}/cut.jsonl.gz").records("train", tmp_path, BadRecords(99)))
