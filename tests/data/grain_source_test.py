"""Grain's pipelines as a source: maps, filters, mixes, files of ArrayRecord, worker processes."""

import json

import grain
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from bigmodel_jax.data import GrainDataset, ImageData, TextData, TokenizerConfig
from bigmodel_jax.data.base import BadRecords

FILE = []


def texts():
    words = grain.MapDataset.source(["one", "two", "", "three"])
    records = words.filter(lambda word: word != "").map(lambda word: {"text": word})
    return {"train": records, "validation": records.to_iter_dataset(grain.ReadOptions(num_threads=1))}


def packed():
    return grain.MapDataset.source(grain.sources.ArrayRecordDataSource(FILE)).map(json.loads)


def pictures():
    def record(i):
        return {"image": np.full((2, 2, 1), i, np.uint8), "label": i % 2}

    whole = grain.MapDataset.range(6).map(record)
    return {"train": grain.MapDataset.mix([whole[:4], whole[4:]], [2, 1]), "validation": whole[4:]}


def endless():
    return grain.MapDataset.range(3).repeat()


def numbers():
    return grain.MapDataset.range(2)


def records(make, split="train", limit=0):
    bad = BadRecords(limit)
    return [record for _, record in GrainDataset(make).records(split, None, bad)], bad.skipped


def test_records_come_in_the_pipelines_order_without_those_that_a_filter_drops(tmp_path):
    for split in ("train", "validation"):
        assert [r["text"] for r in records(texts, split)[0]] == ["one", "two", "three"]
    source = GrainDataset(texts)
    assert source.fingerprint("train", tmp_path) == source.fingerprint("validation", tmp_path)
    data = TextData(source=source, tokenizer=TokenizerConfig("bytes"), cache_dir=str(tmp_path), seq_len=8)
    assert data.open("train").meta["documents"] == 3


def test_array_records_are_read(tmp_path):
    path = str(tmp_path / "a.array_record")
    writer = ArrayRecordWriter(path, "group_size:1")
    for i in range(3):
        writer.write(json.dumps({"text": f"t{i}"}).encode())
    writer.close()
    FILE[:] = [path]
    assert [r["text"] for r in records(packed)[0]] == ["t0", "t1", "t2"]


def test_pictures_and_a_mix_of_grains_own(tmp_path):
    data = ImageData(source=GrainDataset(pictures), num_classes=2, cache_dir=str(tmp_path))
    assert sorted(data.open("train").images[:, 0, 0, 0].tolist()) == [0, 1, 2, 3, 4, 5]
    assert data.open("validation").labels.tolist() == [0, 1]


def test_what_cannot_be_read_is_one_line():
    with pytest.raises(
        ValueError, match=r"function: .*:endless: ValueError: the data set has no end; leave out repeat"
    ):
        records(endless)
    with pytest.raises(ValueError, match=r"numbers train record 0: int64, not a dict|record 0: int, not a dict"):
        records(numbers)
    with pytest.raises(ValueError, match=r"list returns list; a grain\.MapDataset or IterDataset"):
        records(list)
    with pytest.raises(ValueError, match="gives the splits train; 'validation' is needed"):
        records(numbers, "validation")


WORKERS = """
import grain

def record(i):
    return {"text": f"text {i}"}

def many():
    whole = grain.MapDataset.range(7).map(record).to_iter_dataset(grain.ReadOptions(num_threads=1))
    return whole.mp_prefetch(grain.MultiprocessingOptions(num_workers=2))
"""


@pytest.mark.slow
def test_worker_processes_make_the_records_of_a_config_files_functions_in_their_order(tmp_path):
    (tmp_path / "mine.py").write_text(WORKERS)
    assert [r["text"] for r in records(f"{tmp_path}/mine.py:many")[0]] == [f"text {i}" for i in range(7)]
