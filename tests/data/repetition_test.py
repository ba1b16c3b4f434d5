"""Gopher's rules of repetition: a document for each rule, and counts by hand."""

import random

import pytest

from bigmodel_jax.data.cleaning import repetition
from bigmodel_jax.data.cleaning.repetition import GopherRepetition

R = random.Random(0)
WORDS = ["".join(R.choices("abcdefghij", k=6)) for _ in range(600)]
PROSE = "\n".join(" ".join(WORDS[i : i + 10]) for i in range(0, 600, 10))
NONE = {"most_lines": 1.0, "most_line_characters": 1.0, "most_paragraphs": 1.0, "most_paragraph_characters": 1.0}
NO_GRAMS = {"most_top": (), "most_repeated": ()}


def why(text, **fields):
    return GopherRepetition(**fields).why({"text": text})


def test_text_without_repetition_stays():
    assert why(PROSE) == ""
    assert why("") == ""


def test_lines_and_paragraphs():
    assert why("a\n" * 4 + "b\nc\nd", **NO_GRAMS).startswith("duplicate lines: 0.43 of them, more than 0.3")
    long = "\n".join([*"abcdefgh", "x" * 30, "x" * 30])
    assert why(long, **NO_GRAMS).startswith("characters in duplicate lines: 0.44, more than 0.2")
    lines = {"most_lines": 1.0, "most_line_characters": 1.0}
    assert why("a\n\na\n\nb", **NO_GRAMS, **lines).startswith("duplicate paragraphs: 0.33 of them")
    paragraphs = "\n\n".join([*"abcdefgh", "x" * 30, "x" * 30])
    assert why(paragraphs, **NO_GRAMS, **lines).startswith("characters in duplicate paragraphs: 0.44")


@pytest.mark.parametrize(("n", "most"), [(2, 0.2), (3, 0.18), (4, 0.16)])
def test_the_commonest_gram(n, most):
    gram, alone = " ".join(WORDS[:n]), {"most_repeated": ()}
    times = int(most * (600 - n) / (1 - most) / n) + 2  # of 600 - n + times * n words
    others = iter(WORDS[n:])
    text = " ".join(f"{gram} {next(others)}" for _ in range(times)) + " " + " ".join(others)
    others_off = tuple(most if k == n else 1.0 for k in (2, 3, 4))
    assert why(text, most_top=others_off, **alone).startswith(f"commonest {n}-gram")
    assert why(text, most_top=(1.0, 1.0, 1.0), **alone) == ""


@pytest.mark.parametrize("n", range(5, 11))
def test_repeated_grams(n):
    repeated = WORDS[:110] + WORDS[:110] + WORDS[110:200]  # 110 of 310 words stood before
    most = tuple(0.10 if k == n else 1.0 for k in range(5, 11))
    assert why(" ".join(repeated), most_top=(), most_repeated=most).startswith(f"repeated {n}-grams: 0.35 of the")


def test_counts_by_hand():
    words = ["a", "bb", "a", "bb", "ccc", "a", "bb"]
    assert repetition._top(words, 2) == 3 * 3  # "a bb" three times
    assert repetition._repeated(words, [len(w) for w in words], 2) == 3 + 3
    assert repetition._repeated(list("aaaaa"), [1] * 5, 2) == 4  # overlapping grams count a word once
    assert repetition._top(["x", "y"], 2) == 0, "a gram that comes once repeats nothing"
