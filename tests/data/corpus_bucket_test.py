"""A corpus is prepared into a bucket: whole, once, gone on after a broken upload, and read from
there."""

import json

import pytest

from bigmodel_jax import cli
from bigmodel_jax.core import paths
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.corpus import bucket
from bigmodel_jax.data.sources.array_record_files import ArrayRecordFiles
from bucket_server import BUCKET

ADDRESS = f"gs://{BUCKET}/corpora/one"
CONFIG = """
from bigmodel_jax.config import Config
from bigmodel_jax.data import Corpus, JsonlFiles, TextData, TokenizerConfig
from bigmodel_jax.data.cleaning.duplicates import ExactDuplicates
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken

def get_config():
    files = JsonlFiles(train={train!r}, validation={validation!r})
    source = Corpus(files, (ExactDuplicates(),))
    data = TextData(source=source, tokenizer=TokenizerConfig(vocab_size=300), seq_len=16)
    return Config(model=LlamaConfig.tiny(), objective=NextToken(), data=data)
"""


@pytest.fixture
def config(served, tmp_path):
    """A config file whose corpus has ten texts of which one is there twice."""
    for name, texts in (("train", [*range(9), 3]), ("validation", [20, 21])):
        lines = "".join(json.dumps({"text": f"text number {n} of a corpus"}) + "\n" for n in texts)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    path = tmp_path / "corpus.py"
    path.write_text(CONFIG.format(**{n: str(tmp_path / f"{n}.jsonl") for n in ("train", "validation")}))
    return path


def _names() -> list[str]:
    return sorted(paths.below(paths.remote(ADDRESS)))


def _texts() -> list[str]:
    source = ArrayRecordFiles(train=f"{ADDRESS}/train-*.array_record", validation="unused")
    return [record["text"] for _, record in source.records("train", None, BadRecords(0))]


def test_a_corpus_in_a_bucket_is_that_of_a_disk_and_is_made_once(config, tmp_path, capsys, monkeypatch):
    cli.main(["prepare", str(config), "--output", str(tmp_path / "disk")])
    cli.main(["prepare", str(config), "--output", ADDRESS])
    assert capsys.readouterr().out.splitlines()[-1] == ADDRESS
    assert _names() == sorted(p.name for p in (tmp_path / "disk").iterdir())
    for path in (tmp_path / "disk").glob("*.array_record"):
        assert paths.read(f"{ADDRESS}/{path.name}") == path.read_bytes()
    assert len(_texts()) == 9
    monkeypatch.setattr(paths, "upload", lambda *_: pytest.fail("it was uploaded again"))
    cli.main(["prepare", str(config), "--output", ADDRESS])
    assert "9 records" in capsys.readouterr().out


def test_an_upload_that_breaks_off_goes_on_and_the_manifest_comes_last(config, monkeypatch):
    sent, upload = [], paths.upload

    def breaks(path, address):
        sent.append(path.name)
        if path.name == bucket.MANIFEST:
            raise paths.Unanswered(f"{address} does not answer")
        upload(path, address)

    with monkeypatch.context() as patch:
        patch.setattr(paths, "upload", breaks)
        with pytest.raises(SystemExit) as stopped:
            cli.main(["prepare", str(config), "--output", ADDRESS])
    assert stopped.value.code == 2
    assert bucket.MANIFEST not in _names()
    assert sent[-1] == bucket.MANIFEST
    again = []
    monkeypatch.setattr(paths, "upload", lambda path, address: (again.append(path.name), upload(path, address)))
    cli.main(["prepare", str(config), "--output", ADDRESS])
    assert [name for name in again if name.endswith(".array_record")] == []
    assert bucket.MANIFEST in _names()


@pytest.mark.parametrize("name", ["train-00007.array_record", "notes.txt"])
def test_an_object_of_others_is_one_line(name, config, capsys):
    paths.write(f"{ADDRESS}/{name}", b"other")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["prepare", str(config), "--output", ADDRESS])
    assert stopped.value.code == 2
    assert f"--output {ADDRESS} holds {name}, which is not the corpus's" in capsys.readouterr().err


def test_another_corpus_and_a_missing_bucket_are_one_line(config, capsys):
    cli.main(["prepare", str(config), "--output", ADDRESS])
    other = config.with_name("other.py")
    other.write_text(config.read_text().replace("(ExactDuplicates(),)", "()"))
    for place, said in ((ADDRESS, f"--output {ADDRESS} holds another corpus"), ("gs://missing/x", "gs://missing")):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main(["prepare", str(other), "--output", place])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
