"""Evaluation text cut out of training text."""

import dataclasses
import gzip
import json

import pytest

from bigmodel_jax.data import Corpus, JsonlFiles
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.cleaning.c4 import C4
from bigmodel_jax.data.cleaning.decontamination import Decontaminate

SECRET = " ".join(f"secret{i}" for i in range(13))
BEFORE, AFTER = " ".join(f"b{i}" for i in range(200)), " ".join(f"a{i}" for i in range(200))


@pytest.fixture
def step(tmp_path):
    (tmp_path / "eval.jsonl").write_text(json.dumps({"question": SECRET.upper(), "choices": ["x"]}) + "\n")
    return lambda **fields: Decontaminate(against=str(tmp_path / "*.jsonl"), **fields)


def test_what_is_near_an_evaluation_text_is_cut_out(step):
    found, why = step().clean({"text": f"{BEFORE} {SECRET}, {AFTER}", "id": 7})
    assert why == ""
    assert [record["id"] for record in found] == [7, 7]
    assert found[0]["text"] == BEFORE[: len(BEFORE) + 1 - 200]
    assert AFTER.endswith(found[1]["text"])
    assert len(found[1]["text"]) == len(AFTER) + 2 - 200


def test_a_shorter_overlap_stays(step):
    text = {"text": f"{BEFORE} {' '.join(SECRET.split()[:12])} {AFTER}"}
    assert step().clean(text) == ([text], "")
    assert len(step(ngram=12).clean(text)[0]) == 2


def test_documents_that_go(step):
    assert step().clean({"text": f"a {SECRET} b"}) == ([], "evaluation text: no piece of 200 characters is left")
    many = f" {BEFORE} ".join([SECRET] * 11)
    assert step().clean({"text": f"{BEFORE} {many}"})[1].startswith("evaluation text: in 11 places, 11 pieces are more")


def test_overlapping_cuts_are_one(step, tmp_path):
    (tmp_path / "more.jsonl").write_text(json.dumps([f"{SECRET} and some more"]))
    found, _ = step(window=0, least=1).clean({"text": f"{BEFORE} {SECRET} and some more {AFTER}"})
    assert [record["text"].strip() for record in found] == [BEFORE, AFTER]


def test_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"^against: '.*none.txt' matches no file$"):
        Decontaminate(against=str(tmp_path / "none.txt")).reads()
    with pytest.raises(ValueError, match="^against: empty; files of evaluation text are needed$"):
        Decontaminate().clean({"text": "x"})
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"^against: .*bad.jsonl cannot be read: "):
        Decontaminate(against=str(tmp_path / "bad.jsonl")).clean({"text": "x"})


@pytest.mark.parametrize("name", ["eval.json", "eval.jsonl.gz", "eval.txt.gz"])
def test_files_of_other_forms_hold_the_same_text(name, tmp_path):
    secret = SECRET.replace("secret0", "schön\u2028")  # JSON may hold both as they are, or escaped
    content = {"json": json.dumps([{"q": secret}]), "jsonl": json.dumps(secret, ensure_ascii=False), "txt": secret}
    content = content[name.split(".")[1]].encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    found, _ = Decontaminate(against=str(tmp_path / name)).clean({"text": f"{BEFORE} {secret}, {AFTER}"})
    assert len(found) == 2
    assert "schön" not in found[0]["text"]


def test_a_file_that_cannot_be_read_costs_no_record(tmp_path):
    (tmp_path / "eval.jsonl").write_text('{"q": ')
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    corpus = Corpus(JsonlFiles(str(tmp_path / "a.jsonl")), (Decontaminate(against=str(tmp_path / "eval.jsonl")),))
    with pytest.raises(ValueError, match=r"^against: \S+eval\.jsonl cannot be read: [^\n]+$"):
        list(corpus.records("train", tmp_path, BadRecords(100)))
    (tmp_path / "words.txt").write_bytes(b"\xff")
    corpus = dataclasses.replace(corpus, steps=(C4(bad_words=str(tmp_path / "words.txt")),))
    with pytest.raises(ValueError, match=r"^bad_words: \S+words\.txt is not UTF-8 text [^\n]+$"):
        list(corpus.records("train", tmp_path, BadRecords(100)))
