"""Tokenizers in the forms in which they are published give transformers' ids on a thousand texts
each."""

import hashlib
import json
from pathlib import Path

import pytest

from bigmodel_jax.data.tokenizers.tokenizer_files import from_folder
from tokenizer_texts import texts

FORMS = Path(__file__).parent / "tokenizer_forms"
EXPECTED = json.loads((FORMS / "expected.json").read_text())
LENGTH = 6  # of a digest


def digests(text: str) -> list[str]:
    return [text[i : i + LENGTH] for i in range(0, len(text), LENGTH)]


def digest(ids: list[int]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:LENGTH]


@pytest.mark.parametrize("form", sorted(set(EXPECTED) - {"versions"}))
def test_a_published_form_gives_transformers_ids(form):
    model = from_folder(FORMS / form)
    model.encode_special_tokens = True
    expected = digests(EXPECTED[form]["plain"])
    given = texts(len(expected))
    found = [digest(e.ids) for e in model.encode_batch(given, add_special_tokens=False)]
    wrong = [text for text, a, b in zip(given, found, expected, strict=True) if a != b]
    assert not wrong, (len(wrong), wrong[:5])
