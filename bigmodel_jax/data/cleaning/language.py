"""The language of a text, by a model that ships inside a package."""

import dataclasses
import functools
from typing import Any

from bigmodel_jax.core.ranges import Count, Share
from bigmodel_jax.data.cleaning.step import Step, package, text_of


@dataclasses.dataclass(frozen=True)
class Language(Step):
    """Writes py3langid's answer into the field `language` (ISO 639-1) and keeps the languages that are asked for.

    Lui and Baldwin, langid.py (ACL 2012): naive Bayes over byte n-grams, 97 languages.
    """

    packages = ("py3langid",)

    field: str = "text"
    keep: tuple[str, ...] = ()
    "languages that stay, such as en; empty: all"
    least: Share = 0.0
    "the least probability with which the model names the language"
    characters: Count = 2_000
    "so much of the text's beginning is read"

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
    """Read once a process: half a second."""
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
