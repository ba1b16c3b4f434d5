"""Identifies the language of a text with a model that a Python package brings along."""

import dataclasses
import functools
from typing import Any

from bigmodel_jax.core.ranges import Count, Share
from bigmodel_jax.data.cleaning.step import Step, package, text_of


@dataclasses.dataclass(frozen=True)
class Language(Step):
    """Writes the language into the field `language` (ISO 639-1), and filters records by it.

    The model is py3langid's: naive Bayes over byte n-grams, 97 languages (Lui and Baldwin,
    langid.py, ACL 2012).
    """

    packages = ("py3langid",)

    field: str = "text"
    "the record's field with the text"
    keep: tuple[str, ...] = ()
    "languages that stay, such as en; empty: all"
    least: Share = 0.0
    "the least probability of the identified language; a record below it is dropped"
    characters: Count = 2_000
    "how many characters of the text's beginning the model reads"

    def clean(self, record):
        text = text_of(record, self.field)[: self.characters]
        language, probability = _model(package("py3langid", self).langid).classify(text)
        if self.keep and language not in self.keep:
            return [], f"language: {language} (probability {probability:.2f}), not {', '.join(self.keep)}"
        if probability < self.least:
            return [], f"language unsure: {language} with probability {probability:.2f}, less than {self.least:g}"
        return [record | {"language": language}], ""


@functools.cache
def _model(langid: Any) -> Any:
    """Load the model once per process. This takes half a second."""
    # Without `norm_probs` the model returns a log probability, and `least` needs 0 to 1.
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
