"""The language of a text."""

import pytest

from bigmodel_jax.data.cleaning.language import Language

pytest.importorskip("py3langid")
TEXTS = {
    "en": "The cat sat on the mat and slept until the evening came.",
    "de": "Der Hund schläft den ganzen Tag im Garten hinter dem Haus.",
    "fr": "Le chat dort sur le tapis pendant que la pluie tombe dehors.",
    "ru": "Привет, как дела? Сегодня очень хорошая погода.",
}


def test_the_language_is_written_into_the_record():
    assert {name: Language().clean({"text": text})[0][0]["language"] for name, text in TEXTS.items()} == dict(
        zip(TEXTS, TEXTS, strict=True)
    )


def test_languages_are_chosen():
    assert Language(keep=("de", "fr")).clean({"text": TEXTS["fr"]})[1] == ""
    assert (
        Language(keep=("de", "fr")).clean({"text": TEXTS["en"]})[1].startswith("language: en (probability 0.99), not")
    )
    assert Language(least=0.999).clean({"text": "a b"})[1].startswith("language unsure: ")
    assert Language(characters=10).clean({"text": TEXTS["ru"][:20] + TEXTS["en"]})[0][0]["language"] != "en"
