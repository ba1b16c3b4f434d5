"""Masks personal data: e-mail addresses, IP addresses, payment card numbers and phone numbers."""

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
    """Replaces personal data with [EMAIL], [IP], [CARD] and [PHONE].

    - A card number has 13 to 19 digits and a valid Luhn sum (ISO/IEC 7812-1).
    - An IP address is one that Python's ipaddress module accepts.
    - A phone number is international (+…), or North American with separators.
    """

    field: str = "text"
    "the record's field with the text"
    kinds: tuple[Kind, ...] = ("email", "ip", "card", "phone")
    "what is masked"

    def clean(self, record):
        text = text_of(record, self.field)
        for kind in KINDS:
            if kind in self.kinds:
                text = _masked(kind, text)
        return [record | {self.field: text}], ""


def luhn(digits: str) -> bool:
    """Tell whether digits pass Luhn's check.

    Every second digit from the right is doubled, and the sum of all digits must be a multiple of
    10.
    """
    doubled = [sum(divmod(2 * int(d), 10)) if i % 2 else int(d) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _card(found: str) -> bool:
    # A repeated digit such as 0000… passes Luhn's check and is no card.
    digits = re.sub(r"\D", "", found)
    return luhn(digits) and len(set(digits)) > 1


def _ip(found: str) -> bool:
    try:
        ipaddress.ip_address(found)
    except ValueError:
        return False
    return any(map(str.isdigit, found))  # "a::b" is a valid address, but more often code


# The order matters: the pattern of phone numbers would also match IP addresses and card numbers.
KINDS: dict[str, tuple[re.Pattern, Callable[[str], bool]]] = {
    "email": (EMAIL, lambda found: True),
    "ip": (IP, _ip),
    "card": (CARD, _card),
    "phone": (PHONE, lambda found: True),
}


def _masked(kind: str, text: str) -> str:
    pattern, is_one = KINDS[kind]
    return pattern.sub(lambda match: f"[{kind.upper()}]" if is_one(match[0]) else match[0], text)
