"""The rules that made C4 from web pages (arXiv:1910.10683, section 2.2)."""

import dataclasses
import functools
import re
from pathlib import Path

from bigmodel_jax.core.ranges import CountOrZero
from bigmodel_jax.data.cleaning.step import Step, StepError, text_of

END_MARKS = (".", "!", "?", '"', "\u201d")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
# Some pages of the web crawl come from Wikipedia, whose marks interrupt sentences.
CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
SENTENCE_END = re.compile(r"[.!?]+[\"\u201d')\]]*(?=\s|$)")


@dataclasses.dataclass(frozen=True)
class C4(Step):
    """Keeps the lines of a page that look like sentences, and drops pages with too few of them.

    - A line stays where it ends in a punctuation mark, has `least_words` words, and does not
      mention JavaScript or policies. Citation marks are cut out of it.
    - A page is dropped where it holds "lorem ipsum", a curly bracket or a word of `bad_words`.
    - A sentence ends in . ! or ? before whitespace. C4 itself used a sentence tokenizer.

    C4 also removes spans of three sentences that occur twice in the corpus. That rule needs more
    than one page, so it is not part of this step.
    """

    field: str = "text"
    "the record's field with the text"
    least_sentences: CountOrZero = 3
    "the fewest sentences of a page"
    least_words: CountOrZero = 5
    "the fewest words of a line"
    bad_words: str = ""
    """a file of words, one per line, that no page may hold; empty: none (the paper uses a public
    list)"""

    def reads(self):
        path = Path(self.bad_words).expanduser()
        if self.bad_words and not path.is_file():
            raise ValueError(f"bad_words = {self.bad_words!r}: no such file")
        return [path] if self.bad_words else []

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
        # Most programming languages use curly brackets, and natural text hardly ever does.
        if "{" in text:
            return "curly bracket"
        if self.bad_words and (found := _bad_words(Path(self.bad_words).expanduser()).search(lower)):
            return f"bad word: {found[0]}"
        return ""

    def _stays(self, line: str) -> bool:
        lower = line.lower()
        # An ellipsis marks text that was cut off. The rule is that of C4's code, not of the paper.
        ended = line.endswith(END_MARKS) and not line.endswith("...")
        # Pages that ask for JavaScript or cookies are notices and not texts.
        return (
            ended and len(line.split()) >= self.least_words and not any(p in lower for p in ("javascript", *POLICIES))
        )


@functools.cache
def _bad_words(path: Path) -> re.Pattern:
    """Return a pattern of the file's words; each process reads the file once."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except ValueError as error:
        raise StepError(f"bad_words: {path} is not UTF-8 text ({error})") from error
    words = [re.escape(line.strip().lower()) for line in lines if line.strip()]
    if not words:
        raise StepError(f"bad_words: {path} holds no words")
    # Word boundaries keep a bad word from matching inside a harmless one.
    return re.compile(rf"\b(?:{'|'.join(words)})\b")
