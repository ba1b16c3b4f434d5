"""The bytes of this process, of three and of Apache Beam, in the environment that the verb itself
says how to make."""

import hashlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = str(Path(__file__).parents[2] / "launch.py")
HERE = [sys.executable, LAUNCH, "prepare", "own.py"]
CONFIG = """
from bigmodel_jax.config import Config
from bigmodel_jax.data import Corpus, TableFiles, TextData, TokenizerConfig
from bigmodel_jax.data.cleaning.duplicates import ExactDuplicates, LabelAgreement, NearDuplicates
from bigmodel_jax.data.cleaning.quality import GopherQuality
from bigmodel_jax.data.cleaning.step import Function
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken

def halves(record):
    middle = len(record["text"]) // 2
    if record["text"].startswith("word2"):
        raise KeyError("two")
    if not record["text"].startswith("word1"):
        yield record | {"text": record["text"][:middle]}
        yield record | {"text": record["text"][middle:]}

def get_config():
    steps = (GopherQuality(least_words=15, least_stop_words=0), LabelAgreement(), ExactDuplicates(), Function(halves))
    corpus = Corpus(TableFiles("train-*.jsonl", "held.jsonl"), (*steps, NearDuplicates(words=1)), shard_mb=1)
    return Config(LlamaConfig(), NextToken(), TextData(source=corpus, tokenizer=TokenizerConfig("bytes")))
"""


def options(name):
    return ["--output", name, "--data.cache_dir", "cache", "--data.max_bad_records", "1000"]


def prepared(folder, command, name):
    """{file: sha256} of what the command wrote."""
    subprocess.run([*command, *options(name)], cwd=folder, check=True, capture_output=True)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / name).iterdir()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The folder of a corpus; Beam's environment is 450 MB, which the first start downloads.

    Twins lie within files, across files and across splits, under two labels.
    """
    pytest.importorskip("rensa")
    folder, draw = tmp_path_factory.mktemp("corpus"), random.Random(0)
    words = [f"word{i}" for i in range(900)]
    own = [" ".join(draw.choices(words, k=draw.randrange(10, 400))) for _ in range(3000)]
    everything = draw.sample(own[20:] + [t.replace(" word", " other", 1) for t in own[:1500]] + own[20:800], 5000)
    for name, texts in (("held", own[:40]), ("train-0", everything[:1500]), ("train-1", everything[1500:])):
        rows = [json.dumps({"text": text, "label": draw.randrange(8) // 7}) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join([*rows, "{"]))
    (folder / "own.py").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UV_NO_CONFIG", "1")  # pyproject.toml asks for bytecode, which takes a minute
        yield folder


@pytest.fixture(scope="module")
def straight(corpus):
    """What one process makes of the corpus."""
    return prepared(corpus, HERE, "straight")


@pytest.fixture(scope="module")
def beam(corpus):
    """The command that runs Beam, as the verb says it."""
    said = subprocess.run([*HERE, "--engine", "beam"], cwd=corpus, capture_output=True, text=True).stderr
    return shlex.split(re.search(r"uv run .*", " ".join(said.split()))[0])


@pytest.mark.exhaustive
def test_beam_gives_the_bytes_of_one_process_and_of_three(corpus, beam, straight):
    assert beam[-4:] == ["prepare", "own.py", "--engine", "beam"]
    assert prepared(corpus, [*HERE, "--workers", "3"], "three") == straight
    for workers in ("1", "2"):
        assert prepared(corpus, [*beam, "--workers", workers], f"beam-{workers}") == straight
    wrong = subprocess.run([*beam, "--output", "none"], cwd=corpus, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "data.max_bad_records: 0 allows no more" in " ".join(wrong.stderr.split())
    card = json.loads((corpus / "straight" / "data_card.json").read_text())
    assert all(any(step["dropped"].values()) for step in card["steps"]), "every step has dropped something"
    assert len(straight) > 4


def killed(folder, command, name, piece, number):
    """Kill the command as soon as so many files of a kind of piece are finished; {file: its
    inode}."""
    finished, process = (
        folder / f"{name}.partial" / "finished",
        subprocess.Popen([*command, *options(name)], cwd=folder, stderr=subprocess.DEVNULL, start_new_session=True),
    )
    while len(found := list(finished.glob(piece))) < number:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return {path: path.stat().st_ino for path in found if path.suffix == ""}


@pytest.mark.exhaustive
def test_a_killed_pipeline_goes_on_from_its_finished_chunks_verdicts_and_shards(corpus, beam, straight):
    kept = killed(corpus, beam, "out", "chunks/*/[0-9]", 3)
    for piece, number in (("verdicts/*/*", 1), ("shards/*", 2)):
        more = killed(corpus, beam, "out", piece, number)
        assert {path: path.stat().st_ino for path in kept} == kept, "no piece is made again"
        kept |= more
    refused = subprocess.run([*HERE, *options("out")], cwd=corpus, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "was begun by --engine beam in chunks of 512 records" in " ".join(refused.stderr.split())
    assert prepared(corpus, beam, "out") == straight
    assert not list(corpus.glob("out.*"))
