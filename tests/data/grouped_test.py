"""The work of a corpus in groups, as Beam does it, without Beam: lists shuffled between all of its
steps."""

import dataclasses
import hashlib
import json
import random

import pytest

from bigmodel_jax.data import Corpus, TableFiles
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.cleaning.duplicates import ExactDuplicates, LabelAgreement, NearDuplicates
from bigmodel_jax.data.cleaning.quality import GopherQuality
from bigmodel_jax.data.cleaning.step import Function, Shared
from bigmodel_jax.data.corpus import finished, grouped, prepare
from bigmodel_jax.data.corpus import folder as folders
from bigmodel_jax.data.corpus.card import Tally
from bigmodel_jax.data.corpus.outcome import Asked, Bad, Gave, Kept, outcomes
from bigmodel_jax.data.corpus.parts import parts

R = random.Random(0)
TEXTS = [" ".join(R.choices([f"word{i}" for i in range(900)], k=R.randrange(10, 40))) for i in range(300)]
STEPS = (
    GopherQuality(least_words=15, least_stop_words=0),
    LabelAgreement(),
    ExactDuplicates(),
    Function(f"{__name__}:halves"),
    NearDuplicates(words=1, threshold=0.7),
)


def halves(record):
    """Makes two records of one. It drops records that begin with word1, and fails for word2."""
    words = record["text"].split()
    if words[0].startswith("word2"):
        raise KeyError("two")
    if not words[0].startswith("word1"):
        yield record | {"text": " ".join(words[: len(words) // 2])}
        yield record | {"text": " ".join(words[len(words) // 2 :])}


@pytest.fixture
def corpus(tmp_path):
    """Three files with twins within, across files and across splits, under two labels; a line that
    is no JSON."""
    twins = [t.replace(" word", " other", 1) for t in TEXTS[:150]]
    everything = R.sample(TEXTS[20:] + twins + TEXTS[20:120], 530)
    for name, texts in (("held", TEXTS[:40]), ("train-0", everything[:200]), ("train-1", everything[200:])):
        rows = [json.dumps({"text": t, "label": R.randrange(8) // 7}) for t in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join([*rows, "{"]))
    return Corpus(TableFiles(f"{tmp_path}/train-*.jsonl", f"{tmp_path}/held.jsonl"), STEPS)


def by_key(pairs):
    """What a GroupByKey gives: groups in any order, values in any order."""
    found = {}
    for key, value in random.sample(list(pairs), len(list(pairs))):
        found.setdefault(key, []).append(value)
    return R.sample(list(found.items()), len(found))


def in_groups(job, folder, root, limit):
    """Runs beam.py's graph over lists."""
    read, chunks = [], {}
    for number, (split, source) in enumerate((s, p) for s in job.inputs for p in parts(job.source, s, root)):
        bad = BadRecords(limit)
        for i, chunk in enumerate(prepare.chunks(source.records(split, root, bad))):
            chunks[number, i] = split, outcomes(job.steps, job.splits, (split, chunk))
        read.append(grouped.Part(number, split, bad.skipped, ""))
    left, verdicts = {at: grouped.questions(events) for at, (_, events) in chunks.items()}, {at: {} for at in chunks}
    for i, step in enumerate(job.steps):
        if isinstance(step, Shared):
            asked = [(step.group(q[3]), (at, q[0], q[3])) for at, qs in left.items() for q in qs if q[2] == i]
            found = [found for _, group in by_key(asked) for found in grouped.judged(step, group)]
            left = {at: grouped.still_open(qs, {n for to, (n, _) in found if to == at}, i) for at, qs in left.items()}
            for at, (number, why) in found:
                verdicts[at][number] = why
    settled = {at: grouped.settled(events, verdicts[at], len(job.steps)) for at, (_, events) in chunks.items()}
    facts = [
        grouped.Chunk(
            at, chunks[at][0], [[(s, len(line)) for s, line in r] for r in found.lines], found.tally, found.bad
        )
        for at, found in settled.items()
    ]
    some = R.sample(facts, len(facts))
    plan = grouped.planned(job.inputs, len(job.steps), job.shard_bytes, limit, read[::-1], some)
    if plan.wrong:
        raise ValueError(plan.wrong)
    lines = [
        (shard, (at, own))
        for at, place in plan.places.items()
        for shard, own in grouped.by_shard(place, job.shard_bytes, settled[at].lines)
    ]
    shards = []
    for (_, split, number), of_chunks in sorted(by_key(lines)):
        writer = folders.Shards(folder, {split: number})
        for line in (line for _, own in sorted(of_chunks) for line in own):
            writer.write(split, line)
        shards += writer.close()
    prepare.finish(job, folder, plan.manifest | {"shards": shards}, Tally(len(job.steps), plan.tally))


def made(corpus, root, name, **how):
    job = dataclasses.replace(corpus.job(root), shard_bytes=8_000)
    folder = prepare.prepare(job, root / name, root, **({"max_bad_records": 100} | how))
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_groups_give_the_bytes_of_one_process(share, corpus, tmp_path, monkeypatch):
    pytest.importorskip("rensa")
    monkeypatch.setattr(prepare, "CHUNK_RECORDS", 64)
    if share:
        own = dataclasses.replace(corpus.source, validation="")
        corpus = dataclasses.replace(corpus, source=own, validation_share=share)
    straight = made(corpus, tmp_path, "straight")
    assert made(corpus, tmp_path, "groups", engine=in_groups) == straight
    monkeypatch.setattr(prepare, "CHUNK_RECORDS", 50)
    assert made(corpus, tmp_path, "others", engine=in_groups) == straight
    card = json.loads((tmp_path / "straight" / prepare.CARD).read_text())
    assert len(card["shards"]) > 4
    assert all(any(step["dropped"].values()) for step in card["steps"]), "every step has dropped something"


def test_too_many_bad_records_end_the_work_in_groups_as_in_one_process(corpus, tmp_path):
    corpus = dataclasses.replace(corpus, steps=())
    for engine in (None, in_groups):
        with pytest.raises(
            ValueError, match=r"^\S+train-1\.jsonl line 331: not JSON .*\(after 1 others, data\.max_bad_"
        ):
            made(corpus, tmp_path, f"out-{engine is None}", engine=engine, max_bad_records=1)
        assert not (tmp_path / f"out-{engine is None}").exists()


def test_a_question_that_hangs_on_a_dropped_record_is_never_asked():
    asked = [(0, -1, 1, b"a"), (1, 0, 2, b"b"), (2, 1, 3, b"c"), (3, -1, 2, b"d")]
    assert grouped.still_open(asked, {0}, 1) == [(3, -1, 2, b"d")]
    assert grouped.still_open(asked, set(), 2) == [(2, 1, 3, b"c")]


def test_neither_an_engine_nor_this_process_goes_on_from_work_of_the_other(corpus, tmp_path, monkeypatch):
    corpus = dataclasses.replace(corpus, steps=(ExactDuplicates(),))
    straight = made(corpus, tmp_path, "straight")

    def cut(job, folder, root, limit):
        finished.write(folder, "parts/0", {"chunks": 0, "bad": []})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(corpus, tmp_path, "out", engine=cut)
    with pytest.raises(
        ValueError, match="was begun by --engine beam in chunks of 512 .* processes cannot continue its work"
    ):
        made(corpus, tmp_path, "out")
    monkeypatch.setattr(prepare, "CHUNK_RECORDS", 64)
    with pytest.raises(ValueError, match="chunks of 512 .* chunks of 64 .* delete the folder to start again"):
        made(corpus, tmp_path, "out", engine=in_groups)
    monkeypatch.undo()
    assert made(corpus, tmp_path, "out", engine=in_groups) == straight

    with pytest.raises(ValueError, match="allows no more"):
        made(corpus, tmp_path, "other", max_bad_records=1)
    with pytest.raises(ValueError, match="other.partial' was begun by --engine processes"):
        made(corpus, tmp_path, "other", engine=in_groups)


@pytest.mark.slow
def test_events_of_a_chunk_are_stored_whole_or_made_again(corpus, tmp_path):
    job = corpus.job(tmp_path)
    chunk = next(prepare.chunks(corpus.source.records("train", tmp_path, BadRecords(9))))
    events = outcomes(job.steps, job.splits, ("train", chunk))
    kept = Kept("ä\ud800 \U0001f600".encode("utf-8", "surrogatepass") + bytes(range(256)), "train", 3, "de", "\ud800")
    events.append([Asked(1, bytes(range(256)), "\ud800", [kept])])
    assert all(f"{kind.__name__}(" in str(events) for kind in (Asked, Bad, Gave, Kept))

    def never():
        raise AssertionError("it is stored")

    assert finished.from_json(finished.once(tmp_path, "chunks/0/0", lambda: finished.to_json(events))) == events
    assert finished.from_json(finished.once(tmp_path, "chunks/0/0", never)) == events
    file = finished.path(tmp_path, "chunks/0/0")
    whole = file.read_bytes()
    for damaged in (b"", whole[:-1], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]):
        file.write_bytes(damaged)
        assert finished.once(tmp_path, "chunks/0/0", lambda: [1, (2, "again")]) == [1, [2, "again"]]
