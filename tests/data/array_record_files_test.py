"""ArrayRecord shards of JSON records."""

import numpy as np
import pytest
from array_record.python import array_record_module

from bigmodel_jax.data import ArrayRecordFiles
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.sources import array_record_files


def write(path, lines):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:64")
    for line in lines:
        writer.write(line)
    writer.close()
    return path


def records(path, limit=0):
    bad = BadRecords(limit)
    return list(ArrayRecordFiles(str(path)).records("train", None, bad)), bad.skipped


def test_shards_are_read_in_the_order_of_their_names(tmp_path):
    for shard in (1, 0):
        write(tmp_path / f"{shard}.array_record", [b'{"text":"%d of %d"}' % (i, shard) for i in range(600)])
    write(tmp_path / "2.array_record", [])
    found, _ = records(tmp_path / "*.array_record")
    assert [r["text"] for _, r in found] == [f"{i} of {shard}" for shard in (0, 1) for i in range(600)]
    assert found[601][0] == f"{tmp_path / '1.array_record'} record 1"


def test_bad_records_are_named(tmp_path):
    path = write(tmp_path / "a.array_record", [b"{}", b"[1]", b"{", b"\xff"])
    found, skipped = records(path, limit=3)
    assert len(found) == 1
    assert [(where.split()[-1], reason.split(" (")[0]) for where, reason in skipped] == [
        ("1", "a JSON object is needed, not list"),
        ("2", "not JSON"),
        ("3", "not UTF-8"),
    ]


def test_a_shard_that_is_cut_short_or_damaged_is_one_line(tmp_path):
    whole = write(tmp_path / "a.array_record", [b'{"text":"%d"}' % i for i in range(20_000)])
    content = whole.read_bytes()
    for wrong in (content[:-65536], content[: len(content) // 2], b"", b"abc" * 40_000):
        whole.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"^\S+a\.array_record is not a whole ArrayRecord file: [^\n]+$"):
            records(whole)
    whole.write_bytes(content[:5000] + bytes(50) + content[5050:])
    with pytest.raises(ValueError, match=r"^\S+a\.array_record is damaged at record \d+ or later: [^\n]+$"):
        records(whole)


def test_records_become_lines():
    record = {"text": "schön", "n": np.int64(3), "v": np.array([1.5, 2]), "b": b"x"}
    assert array_record_files.json_line(record) == '{"text":"schön","n":3,"v":[1.5,2.0],"b":"x"}'.encode()
    with pytest.raises(TypeError, match="ndarray cannot be written as JSON"):
        array_record_files.json_line({"image": np.zeros((2, 2))})
