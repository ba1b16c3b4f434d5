"""Twins that lie far apart: across files, splits, processes, and a kill between the two."""

import dataclasses
import hashlib
import json
import random

import pytest

from bigmodel_jax.data import Corpus, TableFiles
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.cleaning.duplicates import ExactDuplicates, NearDuplicates
from bigmodel_jax.data.corpus import prepare as preparing
from bigmodel_jax.data.corpus.prepare import CARD, prepare

R = random.Random(0)
WORDS = [f"w{i}" for i in range(5000)]
FIRST = [" ".join(R.choices(WORDS, k=60)) for _ in range(400)]
EQUAL = [f" {text}\n" for text in FIRST[100:140]]  # blanks do not count
NEAR = [f"{text} and more" for text in FIRST[200:260]]
HELD = [f"{text} held out" for text in FIRST[:20]]


@pytest.fixture
def corpus(tmp_path):
    """Four files: the first has all texts but those of HELD twice, the others their twins, behind
    300 strangers each."""
    pytest.importorskip("rensa")
    for name, texts in (("train-0", FIRST), ("train-1", EQUAL), ("train-2", NEAR), ("held", HELD)):
        strangers = [" ".join(R.choices(WORDS, k=60)) for _ in range(300)]
        rows = [json.dumps({"text": text, "from": name}) for text in [*texts[:5], *strangers, *texts[5:]]]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    source = TableFiles(f"{tmp_path}/train-*.jsonl", f"{tmp_path}/held.jsonl")
    return Corpus(source, (ExactDuplicates(), NearDuplicates()))


def made(corpus, root, name, **how):
    job = dataclasses.replace(corpus.job(root), shard_bytes=50_000)
    folder = prepare(job, root / name, root, **how)
    return folder, {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_first_of_twins_stays_wherever_the_other_is(corpus, tmp_path):
    kept = {
        split: [r["text"] for _, r in corpus.records(split, tmp_path, BadRecords(0))]
        for split in ("validation", "train")
    }
    assert set(HELD) < set(kept["validation"])
    assert len(kept["validation"]) == len(HELD) + 300
    assert set(kept["train"]) & {*FIRST, *EQUAL, *NEAR} == set(FIRST[20:]), "what was held out is no training text"
    assert len(kept["train"]) == 3 * 300 + 400 - 20


@pytest.mark.slow
@pytest.mark.parametrize("at", [900, 1500])
def test_a_kill_between_two_twins_changes_nothing(at, corpus, tmp_path, monkeypatch):
    """The second start reads the keys of the kept texts again. Without them, twins behind the cut
    would stay."""
    folder, expected = made(corpus, tmp_path, "straight")
    card = json.loads((folder / CARD).read_text())
    assert [step["dropped"] for step in card["steps"]] == [{"exact duplicate": 40}, {"near duplicate": 80}]
    read, seen = TableFiles.records, []

    def records(self, *args):
        for found in read(self, *args):
            seen.append(found)
            if len(seen) == at:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(preparing, "CHUNK_RECORDS", 32)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TableFiles, "records", records)
        made(corpus, tmp_path, "cut")
    manifest = json.loads((tmp_path / "cut.partial" / "manifest.json").read_text())
    assert sum(manifest["read"].values()) >= at - 250
    assert manifest["keys"]["1"] > 0
    assert made(corpus, tmp_path, "cut")[1] == expected


@pytest.mark.exhaustive  # prepare_test compares two processes, near duplicates included
def test_three_processes_agree_on_twins(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "CHUNK_RECORDS", 50)
    assert made(corpus, tmp_path, "three", workers=3)[1] == made(corpus, tmp_path, "one")[1]
