"""The rules by which C4 was made of web pages (arXiv:1910.10683, section 2.2)."""

import dataclasses
import functools
import re
from pathlib import Path

from bigmodel_jax.core.ranges import CountOrZero
from bigmodel_jax.data.cleaning.step import Step, text_of

END_MARKS = (".", "!", "?", '"', "\u201d")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
SENTENCE_END = re.compile(r"[.!?]+[\"\u201d')\]]*(?=\s|$)")


@dataclasses.dataclass(frozen=True)
class C4(Step):
    """Keeps a page's lines that end like sentences, and the pages of which enough is left.

    Lines need a mark at their end and `least_words`; those about JavaScript or policies go, citation marks are cut out. Pages
    with "lorem ipsum", a curly bracket or a word of `bad_words` go. A sentence ends in . ! or ? before a blank: C4 itself
    used a tokenizer of sentences. C4's removal of spans of three sentences that come twice is no rule of one page.
    """

    field: str = "text"
    least_sentences: CountOrZero = 3
    least_words: CountOrZero = 5
    "of a line"
    bad_words: str = ""
    "a file of words, one a line, that no page may hold; empty: none (the paper takes a public list)"

    def reads(self):
        return [Path(self.bad_words).expanduser()] if self.bad_words else []

    def clean(self, record):
        text = text_of(record, self.field)
        if reason := self._of_page(text):
            return [], reason
        lines = [kept for line in text.splitlines() if self._stays(kept := CITATION.sub("", line).strip())]
        sentences = sum(len(SENTENCE_END.findall(line)) for line in lines)
        if sentences < self.least_sentences:
            return [], f"few sentences: {sentences} in the lines that stay, fewer than {self.least_sentences}"
        return [record | {self.field: "\n".join(lines)}], ""

    def _of_page(self, text: str) -> str:
        lower = text.lower()
        if "lorem ipsum" in lower:
            return "lorem ipsum"
        if "{" in text:
            return "curly bracket"
        for path in self.reads():
            if found := _bad_words(path).search(lower):
                return f"bad word: {found[0]}"
        return ""

    def _stays(self, line: str) -> bool:
        lower = line.lower()
        ended = line.endswith(END_MARKS) and not line.endswith("...")
        return (
            ended and len(line.split()) >= self.least_words and not any(p in lower for p in ("javascript", *POLICIES))
        )


@functools.cache
def _bad_words(path: Path) -> re.Pattern:
    """Read once a process."""
    words = [re.escape(word.strip().lower()) for word in path.read_text("utf-8").splitlines() if word.strip()]
    if not words:
        raise ValueError(f"bad_words: {path} holds no words")
    return re.compile(rf"\b(?:{'|'.join(words)})\b")
