"""Masks: what they cover, and what only looks like it."""

import pytest

from bigmodel_jax.data.cleaning.personal import MaskPersonal, luhn


def masked(text, *kinds):
    step = MaskPersonal(kinds=kinds) if kinds else MaskPersonal()
    return step.clean({"text": text})[0][0]["text"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jane.doe+x@mail.example.co.uk, please", "write to [EMAIL], please"),
        ("the host 192.168.0.12 and 2001:db8::ff00:42:8329.", "the host [IP] and [IP]."),
        ("paid by 4111 1111 1111 1111 today", "paid by [CARD] today"),
        ("paid by 378282246310005.", "paid by [CARD]."),
        ("call +44 20 7946 0958 or (212) 555-0123", "call [PHONE] or [PHONE]"),
        ("call 212-555-0123.", "call [PHONE]."),
    ],
)
def test_what_is_masked(text, expected):
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112 has a wrong Luhn sum",
        "version 1.2.3.4.5 and 300.1.1.1",
        "at 12:30:15 on 2024-01-15, pages 100-200",
        "price 1,234,567.89 and pi 3.14159265358979",
        "a @handle and user@localhost",
        "0000 0000 0000 0000",
        "std::vector and a::b",
    ],
)
def test_what_is_not(text):
    assert masked(text) == text


def test_kinds_are_chosen():
    assert masked("a@b.org 10.0.0.1", "ip") == "a@b.org [IP]"


def test_luhn_by_hand():
    assert luhn("79927398713")
    assert not luhn("79927398710")
