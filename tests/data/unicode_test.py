"""Unicode repaired."""

import pytest

from bigmodel_jax.data.cleaning.unicode import FixUnicode

pytest.importorskip("ftfy")


def fixed(text, **fields):
    return FixUnicode(**fields).clean({"text": text, "id": 1})[0][0]


def test_mojibake_controls_and_forms():
    assert fixed("âœ” schÃ¶n") == {"text": "✔ schön", "id": 1}
    assert fixed("u\u0308ber\x00 all")["text"] == "über all"
    assert fixed("\u2460", form="NFKC")["text"] == "1"
    assert fixed("\u2460")["text"] == "\u2460"
    assert FixUnicode(field="title").clean({"title": "schÃ¶n"})[0] == [{"title": "schön"}]
