"""Gopher's rules of quality: a document for each, which that rule alone drops."""

import dataclasses

import pytest

from bigmodel_jax.data.cleaning.quality import GopherQuality

SENTENCE = "The people of this town have gone to the river and that was a good day with all of them. "
GOOD = SENTENCE * 3  # 60 words


def why(text, **fields):
    return GopherQuality(**fields).why({"text": text})


def test_prose_stays():
    assert why(GOOD) == ""
    assert list(GopherQuality()({"text": GOOD, "id": 3})) == [{"text": GOOD, "id": 3}]


@pytest.mark.parametrize(
    ("text", "rule", "spared"),
    [
        (SENTENCE, "few words: 20, fewer than 50", {"least_words": 20}),
        (GOOD, "many words: 60, more than 56", {"most_words": 60}),
        ("a b I o " * 12 + "the of to and", "word length: 1.12, outside 3 to 10", {"least_word_length": 1.1}),
        (("incomprehensibilities of the indescribableness " * 20), "word length", {"most_word_length": 13.0}),
        (GOOD + "1234 5678 " * 10, "words without letters: 0.75 have one, less than 0.8", {"least_alphabetic": 0.7}),
        ("Green ideas sleep furiously today " * 12, "stop words: 0 of them, fewer than 2", {"least_stop_words": 0}),
        (GOOD + "#tag " * 8, "hash signs: 0.12 for each word, more than 0.1", {"most_symbols": 0.15}),
        ("well... " * 8 + GOOD, "ellipses: 0.12 for each word, more than 0.1", {"most_symbols": 0.15}),
        ("\n".join(f"- {SENTENCE}" for _ in range(5)), "bullets: 1.00 of the lines, more than 0.9", {"most_bullet_lines": 1.0}),
        (
            "\n".join([GOOD, SENTENCE + "and so on...", SENTENCE]),
            "lines ending in an ellipsis: 0.33, more than 0.3",
            {"most_ellipsis_lines": 0.34},
        ),
    ],
)  # fmt: skip
def test_each_rule_drops_what_it_is_for_and_its_threshold_spares_it(text, rule, spared):
    fields = {"most_words": 56} if rule.startswith("many") else {}
    assert why(text, **fields).startswith(rule)
    assert why(text, **(fields | spared)) == ""


def test_the_thresholds_are_the_papers():
    found = dataclasses.asdict(GopherQuality())
    assert [v for v in found.values() if isinstance(v, (int, float))] == [50, 100_000, 3, 10, 0.1, 0.9, 0.3, 0.8, 2]


def test_a_record_without_the_field_is_said():
    with pytest.raises(ValueError, match=r"^no field 'text'; its fields: body$"):
        GopherQuality().why({"body": "x"})
    with pytest.raises(ValueError, match=r"^field 'text' is int, not a text$"):
        GopherQuality().why({"text": 3})
