"""Masks over what names a person or a machine: e-mail addresses, phone numbers, payment cards, IP addresses."""

import dataclasses
import ipaddress
import re
from collections.abc import Callable
from typing import Literal

from bigmodel_jax.data.cleaning.step import Step, text_of

Kind = Literal["email", "ip", "card", "phone"]

EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")
IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:]))"
)
CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-]|\.\d)")
PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"  # +44 20 7946 0958
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4})(?![\w-]|\.\d)"  # (212) 555-0123
)


@dataclasses.dataclass(frozen=True)
class MaskPersonal(Step):
    """Writes [EMAIL], [IP], [CARD] and [PHONE] over what is one.

    A card has 13 to 19 digits whose Luhn sum (ISO/IEC 7812-1) is right; an IP address is one that the standard library
    reads; a phone number is an international one (+…) or a North American one with its separators.
    """

    field: str = "text"
    kinds: tuple[Kind, ...] = ("email", "ip", "card", "phone")

    def clean(self, record):
        text = text_of(record, self.field)
        for kind in KINDS:
            if kind in self.kinds:
                text = _masked(kind, text)
        return [record | {self.field: text}], ""


def luhn(digits: str) -> bool:
    """Whether the sum of the digits, every second one from the right doubled, is a multiple of 10."""
    doubled = [sum(divmod(2 * int(d), 10)) if i % 2 else int(d) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _card(found: str) -> bool:
    digits = re.sub(r"\D", "", found)
    return luhn(digits) and len(set(digits)) > 1


def _ip(found: str) -> bool:
    try:
        ipaddress.ip_address(found)
    except ValueError:
        return False
    return any(map(str.isdigit, found))  # "a::b" is an address, too, and more often code


# In this order: an IP address would else be read as a phone number, and so would a card.
KINDS: dict[str, tuple[re.Pattern, Callable[[str], bool]]] = {
    "email": (EMAIL, lambda found: True),
    "ip": (IP, _ip),
    "card": (CARD, _card),
    "phone": (PHONE, lambda found: True),
}


def _masked(kind: str, text: str) -> str:
    pattern, is_one = KINDS[kind]
    return pattern.sub(lambda match: f"[{kind.upper()}]" if is_one(match[0]) else match[0], text)
