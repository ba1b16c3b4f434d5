"""Repairs wrongly decoded text and normalizes Unicode."""

import dataclasses
from typing import Literal

from bigmodel_jax.data.cleaning.step import Step, package, text_of


@dataclasses.dataclass(frozen=True)
class FixUnicode(Step):
    """Repairs text with ftfy: mojibake ("schÃ¶n"), control characters and HTML entities."""

    packages = ("ftfy",)

    field: str = "text"
    "the record's field with the text"
    form: Literal["NFC", "NFKC", "NFD", "NFKD"] = "NFC"
    """the final Unicode normal form; NFC composes letters and does not merge characters that look
    different"""

    def clean(self, record):
        text = package("ftfy", self).fix_text(text_of(record, self.field), normalization=self.form)
        return [record | {self.field: text}], ""
