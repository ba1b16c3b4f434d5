"""CIDEr-D by its equations: what it is for equal texts, for texts that share nothing, and for an
example by hand."""

import math

import pytest

from bigmodel_jax.metrics.captions import cider, grams
from bigmodel_jax.metrics.texts import find_text

RIGHT = [["a red car stands here"], ["two blue birds fly high"], ["one green tree grows old"]]


def test_equal_captions_have_ten_and_others_nothing():
    assert cider([row[0] for row in RIGHT], RIGHT)["cider"] == pytest.approx(10)
    assert cider(["nothing of this is said"] * 3, RIGHT)["cider"] == 0
    assert find_text("metrics", "cider")([row[0].upper() + "!" for row in RIGHT], RIGHT)["cider"] == pytest.approx(10)


def test_what_all_references_say_counts_nothing():
    right = [["it is red"], ["it is blue"]]
    assert cider(["it is", "it is"], right)["cider"] == 0


def test_an_example_by_hand():
    """The caption "red car" stands for "red bus", and the second picture is "tree": each word
    weighs ln 2, and no bigram is shared."""
    found = cider(["red car", "tree"], [["red bus"], ["tree"]])["cider"]
    # "car" is in no reference: its frequency counts as 1, and it weighs ln 2 as well.
    unigrams = math.log(2) ** 2 / (2 * math.log(2) ** 2)
    assert found == pytest.approx((10 * unigrams / 4 + 10 * 1 / 4) / 2)


def test_repeated_words_are_clipped_and_a_longer_text_loses():
    once, twice = (cider([text, "x y"], [["dog"], ["x y"]])["cider"] for text in ("dog", "dog dog"))
    # Its cosine stays 1 by direction and is clipped to the reference's count; e^(-1 / 72) for one
    # word more.
    one, other = 10 * 1 / 4, 10 * (1 / 2) / 4 * math.exp(-1 / 72)
    rest = cider(["cat", "x y"], [["dog"], ["x y"]])["cider"]
    assert (once - rest, twice - rest) == pytest.approx((one / 2, other / 2))


def test_grams_are_words_without_punctuation():
    assert set(grams("A cat's nap")) == {("a",), ("cat",), ("s",), ("nap",)} | {
        ("a", "cat"),
        ("cat", "s"),
        ("s", "nap"),
        ("a", "cat", "s"),
        ("cat", "s", "nap"),
        ("a", "cat", "s", "nap"),
    }
