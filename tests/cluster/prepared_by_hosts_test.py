"""`launch.py prepare` by the processes of a job: the bytes are those of one process."""

import hashlib
import json

import pytest

from jobs import job

CONFIG = """
from bigmodel_jax.config import Config
from bigmodel_jax.data import Corpus, JsonlFiles, TextData, TokenizerConfig
from bigmodel_jax.data.corpus import prepare
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken

prepare.CHUNK_CHARACTERS = 100_000


def get_config():
    corpus = Corpus(JsonlFiles("{0}/t.jsonl", "{0}/v.jsonl"), shard_mb=1)
    return Config(LlamaConfig(), NextToken(), TextData(source=corpus, tokenizer=TokenizerConfig("bytes")))
"""


def digests(cache):
    """{file below the cache: sha256} of tokens and corpora."""
    found = [p for room in ("corpus-3", "text-2") for p in (cache / room).rglob("*") if p.is_file()]
    return {str(p.relative_to(cache)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


@pytest.mark.slow
def test_two_hosts_tokenize_a_corpus_to_the_bytes_of_one(tmp_path):
    line = json.dumps({"text": "the quick brown fox " * 500}) + "\n"
    (tmp_path / "t.jsonl").write_text(line * 500)
    (tmp_path / "v.jsonl").write_text(line * 20)
    (tmp_path / "own.py").write_text(CONFIG.format(tmp_path))
    caches = {count: tmp_path / f"cache{count}" for count in (1, 2)}
    for count, cache in caches.items():
        with job(count, "prepare", tmp_path / "own.py", "--data.cache_dir", cache, devices=1) as hosts:
            assert hosts.wait(200) == [0] * count, hosts.everything()
            assert "train: 5,000,000 tokens of 500 documents in shards: 5" in hosts.out(0)
            assert all("tokens of" not in hosts.out(i) for i in range(1, count)), "one host speaks for all"
    assert digests(caches[1]) == digests(caches[2])
    assert len(digests(caches[1])) > 16
