"""Questions about a text: the parts of a context, the answer's tokens in them, and records that are
wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from bigmodel_jax.data import QuestionAnsweringData, SquadFiles, TableFiles, fields
from bigmodel_jax.data.tokenizers import tokenizer_files
from bigmodel_jax.objectives import QuestionAnswering
from tiny_encoder import learns

BERT = Path(__file__).parent / "tokenizer_forms" / "bert"
CONTEXT = "Ada lives in Paris. " + "She walks a lot. " * 20 + "Her dog is called Rex."
QUESTION = "Who?"


def row(answer, start=None, **more):
    start = CONTEXT.index(answer) if start is None else start
    return {"question": QUESTION, "context": CONTEXT, "answers": [{"text": answer, "answer_start": start}]} | more


@pytest.fixture
def make(tmp_path):
    tokenizer_files.from_folder(BERT).save(str(tmp_path / "tokenizer.json"))

    def data(rows, **more):
        (tmp_path / "qa.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        source = TableFiles(train=str(tmp_path / "qa.jsonl"), validation=str(tmp_path / "qa.jsonl"))
        fields = {"source": source, "seq_len": 64, "overlap": 16, "tokenizer_path": str(tmp_path / "tokenizer.json")}
        return QuestionAnsweringData(**(fields | {"cache_dir": str(tmp_path / "cache")} | more))

    return data


@pytest.mark.parametrize("answer", ["Paris", "Rex", "Her dog is called Rex", "Paris. She"])
def test_the_places_spell_the_answer_in_every_part_that_holds_it(make, answer):
    data = make([row(answer)])
    rows, model = data.open("validation"), data.open_tokenizer().model
    batch = rows.batch(np.arange(len(rows)), None)
    assert len(rows) > 3, "the context is longer than a row"
    found = 0
    for ids, start, end in zip(batch["tokens"], batch["start"], batch["end"], strict=True):
        spelt = model.decode(ids.tolist(), skip_special_tokens=True).replace(" ", "").lower()
        if (start, end) == (0, 0):
            assert answer.replace(" ", "").lower() not in spelt.removeprefix("who?")
        else:
            found += 1
            assert model.decode(ids[start : end + 1].tolist()).replace(" ", "") == answer.replace(" ", "").lower()
    assert found >= 1


def test_a_row_is_laid_out_as_bert_reads_a_pair_and_parts_overlap(make):
    data = make([row("Paris")])
    batch = data.open("train").batch(np.arange(2), np.zeros(2, np.uint64))
    tokenizer = data.open_tokenizer()
    cls, sep = tokenizer.model.token_to_id("[CLS]"), tokenizer.model.token_to_id("[SEP]")
    question = tokenizer.encode(QUESTION)
    begins = [cls, *question, sep]
    assert batch["tokens"][0, : len(begins)].tolist() == begins
    assert batch["token_types"][0].tolist() == [0] * len(begins) + [1] * (64 - len(begins))
    assert batch["tokens"][0, -1] == sep
    assert batch["tokens"][0, -17:-1].tolist() == batch["tokens"][1, len(begins) : len(begins) + 16].tolist()
    fields.check(data.row(), batch)
    assert batch.keys() == data.row().keys()


def test_squad_and_the_hubs_form_give_the_same_rows(make, tmp_path):
    here = {"text": ["Paris"], "answer_start": [CONTEXT.index("Paris")]}
    qas = [{"id": "1", "question": QUESTION, "answers": row("Paris")["answers"]}, {"question": QUESTION, "answers": []}]
    squad = {"version": "2.0", "data": [{"title": "x", "paragraphs": [{"context": CONTEXT, "qas": qas}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    files = SquadFiles(train=str(tmp_path / "squad.json"), validation=str(tmp_path / "squad.json"))
    hub = make([row("Paris", answers=here), row("Paris", answers={"text": [], "answer_start": []})])
    theirs, ours = hub.open("train"), make([], source=files).open("train")
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(ours.places, theirs.places)
    assert (ours.places[len(ours) // 2 :] == 0).all(), "the second question has no answer"


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (row("Paris", start=3), "'Paris' does not stand at character 3 of the context"),
        (row("Paris", answers="Paris"), "field 'answers': not a list of"),
        (row("Paris", answers=[{"text": "Paris"}]), "field 'answers': not a list of"),
        ({"question": "x", "contxt": "y", "answers": []}, r"no field 'context' \(perhaps you meant 'contxt'\)"),
        (row("Paris", question=" "), "field 'question' is not a text, or empty"),
        (row("Paris", question="why " * 60), "tokens are left for a part of the text"),
    ],
)
def test_a_record_that_is_wrong_is_named_or_skipped(make, record, says):
    with pytest.raises(ValueError, match=f"line 1: .*{says}"):
        make([record, row("Rex")]).open("train")
    assert make([record, row("Rex")], max_bad_records=1).open("train").meta["questions"] == 1


@pytest.mark.parametrize("text", ["", "[]", '{"data": [{"paragraphs": 3}]}'])
def test_a_file_that_is_not_squads_is_one_line(make, tmp_path, text):
    (tmp_path / "squad.json").write_text(text)
    with pytest.raises(ValueError, match="squad.json is not SQuAD's JSON"):
        make([], source=SquadFiles(train=str(tmp_path / "squad.json"))).open("train")


def test_an_overlap_as_long_as_a_row_is_refused(make):
    with pytest.raises(ValueError, match="data.overlap = 64; it must be below data.seq_len = 64"):
        make([row("Rex")], overlap=64).open("train")


@pytest.mark.slow
def test_an_encoder_learns_it_and_one_with_another_head_is_refused(make, tmp_path):
    data = make([row("Paris")] * 8, seq_len=96)
    scalars = learns(data, QuestionAnswering(), "question_answering", tmp_path / "run", steps=40)
    assert scalars["eval/exact_match"] > 0.9
