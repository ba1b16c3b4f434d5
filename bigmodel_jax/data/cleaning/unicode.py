"""Text in one form of Unicode, repaired where it was decoded wrongly."""

import dataclasses
from typing import Literal

from bigmodel_jax.data.cleaning.step import Step, package, text_of


@dataclasses.dataclass(frozen=True)
class FixUnicode(Step):
    """What ftfy makes of a text: mojibake ("schÃ¶n") decoded anew, control characters and HTML entities resolved.

    form: the normal form of Unicode at the end; NFC composes letters and keeps what looks different apart.
    """

    packages = ("ftfy",)

    field: str = "text"
    form: Literal["NFC", "NFKC", "NFD", "NFKD"] = "NFC"

    def clean(self, record):
        text = package("ftfy", self).fix_text(text_of(record, self.field), normalization=self.form)
        return [record | {self.field: text}], ""
