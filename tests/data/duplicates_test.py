"""Duplicates: exact ones, near ones by their Jaccard similarity, and labels that disagree."""

import random

import pytest

from bigmodel_jax.data.cleaning.duplicates import ExactDuplicates, LabelAgreement, NearDuplicates

R = random.Random(0)
VOCABULARY = [f"w{i}" for i in range(20_000)]


def asked(step, records):
    index = step.index()
    return [index.ask(step.key(record)) for record in records]


def test_the_first_of_equal_texts_stays():
    texts = ["a b", "a  b\n", "A b", "a b", "c"]
    assert asked(ExactDuplicates(), [{"text": t} for t in texts]) == [
        "",
        "exact duplicate",
        "",
        "exact duplicate",
        "",
    ]


def test_a_text_keeps_its_first_label():
    records = [{"text": t, "label": x} for t, x in [("a", 1), ("b", 0), ("a", 0), ("a", 1)]]
    assert asked(LabelAgreement(), records) == ["", "", "labels disagree: 0, 1 before", ""]
    with pytest.raises(ValueError, match="no field 'label'"):
        LabelAgreement().key({"text": "a"})


def pair(jaccard, size=400):
    """Two texts whose sets of single words have about this Jaccard similarity."""
    words = R.sample(VOCABULARY, 2 * size)
    same = round(2 * size * jaccard / (1 + jaccard))
    return " ".join(words[:size]), " ".join(words[:same] + words[size : 2 * size - same])


@pytest.mark.parametrize(
    ("threshold", "jaccard", "least", "most"),
    [(0.8, 0.9, 0.99, 1.0), (0.8, 0.5, 0.0, 0.01), (0.5, 0.75, 0.99, 1.0), (0.5, 0.25, 0.0, 0.01)],
)
def test_recall_and_false_merges(threshold, jaccard, least, most):
    pytest.importorskip("rensa")
    step = NearDuplicates(words=1, threshold=threshold)
    index, found = step.index(), 0
    for _ in range(300):
        first, second = pair(jaccard)
        assert index.ask(step.key({"text": first})) == ""
        found += index.ask(step.key({"text": second})).startswith("near duplicate")
    assert least <= found / 300 <= most


def test_signatures_are_the_same_in_every_process_and_short_texts_are_compared_whole():
    pytest.importorskip("rensa")
    step, text = NearDuplicates(), {"text": " ".join(VOCABULARY[:50])}
    assert step.key(text) == NearDuplicates().key(dict(text))
    assert asked(step, [{"text": "one two"}, {"text": "One two"}, {"text": "two one"}]) == [
        "",
        "near duplicate: similarity 1.00, 0.8 or more, to a text before: one two",
        "",
    ]
    assert [NearDuplicates(threshold=t).num_bands() for t in (0.95, 0.9, 0.8, 0.5, 0.3)] == [8, 16, 16, 32, 64]
    assert NearDuplicates(bands=8).num_bands() == 8
    with pytest.raises(ValueError, match=r"bands = 7; it must divide permutations = 128, or be 0"):
        NearDuplicates(bands=7)
    with pytest.raises(
        ValueError,
        match=r"^ExactDuplicates compares records, so it must be a step of a Corpus, which `prepare` writes$",
    ):
        ExactDuplicates()({"text": "a"})
