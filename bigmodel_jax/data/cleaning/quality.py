"""Gopher's rules of document quality with their thresholds (arXiv:2112.11446, appendix A.1.1)."""

import dataclasses

from bigmodel_jax.core.ranges import CountOrZero, NonNegative, Share
from bigmodel_jax.data.cleaning.step import Filter, text_of

BULLETS = ("\u2022", "\u2023", "\u25cf", "\u25e6", "\u25aa", "*", "-")
ELLIPSES = ("...", "\u2026")
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\u2018\u2019\u201c\u201d\u2026\u2013\u2014"


@dataclasses.dataclass(frozen=True)
class GopherQuality(Filter):
    """Drops a document by its length, words, symbols and lines; whitespace separates words."""

    field: str = "text"
    "the record's field with the text"
    least_words: CountOrZero = 50
    "the fewest words of a document"
    most_words: CountOrZero = 100_000
    "the most words of a document"
    least_word_length: NonNegative = 3.0
    most_word_length: NonNegative = 10.0
    "the range of the mean word length, in characters"
    most_symbols: NonNegative = 0.1
    "the most hash signs per word, and the most ellipses per word"
    most_bullet_lines: Share = 0.9
    "the largest share of lines that begin with a bullet"
    most_ellipsis_lines: Share = 0.3
    "the largest share of lines that end in an ellipsis"
    least_alphabetic: Share = 0.8
    "the least share of words with a letter"
    least_stop_words: CountOrZero = 2
    "how many different `stop_words` a document must contain"
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    "words of which a document must contain some"

    def why(self, record):
        text = text_of(record, self.field)
        words = text.split()
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return self._of_words(words) or self._of_symbols(text, len(words)) or self._of_lines(lines)

    def _of_words(self, words: list[str]) -> str:
        if len(words) < self.least_words:
            return f"few words: {len(words)}, fewer than {self.least_words}"
        if len(words) > self.most_words:
            return f"many words: {len(words)}, more than {self.most_words}"
        # With `least_words` = 0 even an empty document reaches this line, so the divisor is at
        # least 1.
        length = sum(map(len, words)) / max(len(words), 1)
        if not self.least_word_length <= length <= self.most_word_length:
            return f"word length: {length:.2f}, outside {self.least_word_length:g} to {self.most_word_length:g}"
        alphabetic = sum(any(map(str.isalpha, word)) for word in words) / max(len(words), 1)
        if alphabetic < self.least_alphabetic:
            return f"words without letters: {alphabetic:.2f} have one, less than {self.least_alphabetic:g}"
        # A stop word next to a comma or a quotation mark counts as well.
        found = {word.strip(PUNCTUATION).lower() for word in words} & set(self.stop_words)
        if len(found) < self.least_stop_words:
            return f"stop words: {len(found)} of them, fewer than {self.least_stop_words}"
        return ""

    def _of_symbols(self, text: str, words: int) -> str:
        for name, count in (("hash signs", text.count("#")), ("ellipses", sum(map(text.count, ELLIPSES)))):
            if count > self.most_symbols * words:
                return f"{name}: {count / max(words, 1):.2f} for each word, more than {self.most_symbols:g}"
        return ""

    def _of_lines(self, lines: list[str]) -> str:
        bullets = sum(line.startswith(BULLETS) for line in lines) / max(len(lines), 1)
        if bullets > self.most_bullet_lines:
            return f"bullets: {bullets:.2f} of the lines, more than {self.most_bullet_lines:g}"
        ellipses = sum(line.endswith(ELLIPSES) for line in lines) / max(len(lines), 1)
        if ellipses > self.most_ellipsis_lines:
            return f"lines ending in an ellipsis: {ellipses:.2f}, more than {self.most_ellipsis_lines:g}"
        return ""
