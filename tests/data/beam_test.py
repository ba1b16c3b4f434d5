"""The bytes of this process, of three and of Apache Beam, in the environment that the verb itself says how to make."""

import hashlib
import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = str(Path(__file__).parents[2] / "launch.py")
R = random.Random(0)
TEXTS = [" ".join(R.choices([f"word{i}" for i in range(900)], k=R.randrange(10, 400))) for i in range(3000)]
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


def prepared(folder, command, name):
    """{file: sha256} of what the command wrote."""
    options = ["--output", name, "--data.cache_dir", "cache", "--data.max_bad_records", "1000"]
    subprocess.run([*command, *options], cwd=folder, check=True, capture_output=True)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / name).iterdir()}


@pytest.mark.exhaustive
def test_beam_gives_the_bytes_of_one_process_and_of_three(tmp_path, monkeypatch):
    """It downloads 450 MB the first time. Twins lie within files, across files and across splits, under two labels."""
    pytest.importorskip("rensa")
    everything = R.sample(TEXTS[20:] + [t.replace(" word", " other", 1) for t in TEXTS[:1500]] + TEXTS[20:800], 5000)
    for name, texts in (("held", TEXTS[:40]), ("train-0", everything[:1500]), ("train-1", everything[1500:])):
        rows = [json.dumps({"text": text, "label": R.randrange(8) // 7}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join([*rows, "{"]))
    (tmp_path / "own.py").write_text(CONFIG)
    here = [sys.executable, LAUNCH, "prepare", "own.py"]
    said = subprocess.run([*here, "--engine", "beam"], cwd=tmp_path, capture_output=True, text=True).stderr
    there = shlex.split(re.search(r"uv run .*", " ".join(said.split()))[0])
    assert there[-4:] == ["prepare", "own.py", "--engine", "beam"]
    monkeypatch.setenv("UV_COMPILE_BYTECODE", "0")
    straight = prepared(tmp_path, here, "straight")
    assert prepared(tmp_path, [*here, "--workers", "3"], "three") == straight
    for workers in ("1", "2"):
        assert prepared(tmp_path, [*there, "--workers", workers], f"beam-{workers}") == straight
    wrong = subprocess.run([*there, "--output", "none"], cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "data.max_bad_records: 0 allows no more" in " ".join(wrong.stderr.split())
    card = json.loads((tmp_path / "straight" / "data_card.json").read_text())
    assert all(any(step["dropped"].values()) for step in card["steps"]), "every step has dropped something"
    assert len(straight) > 4
