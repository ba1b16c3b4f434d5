"""Gopher's rules against repetition with their thresholds (arXiv:2112.11446, table A1)."""

import dataclasses
import re
from collections import Counter

from bigmodel_jax.core.ranges import Share
from bigmodel_jax.data.cleaning.step import Filter, text_of


@dataclasses.dataclass(frozen=True)
class GopherRepetition(Filter):
    """Drops a document whose lines, paragraphs or word n-grams repeat too much.

    Each field is the largest share that is allowed. The first of several equal lines is not counted
    as a duplicate.
    """

    field: str = "text"
    "the record's field with the text"
    most_lines: Share = 0.30
    "duplicate lines, as a share of all lines"
    most_paragraphs: Share = 0.30
    "duplicate paragraphs, as a share of all paragraphs"
    most_line_characters: Share = 0.20
    "characters in duplicate lines, as a share of the characters of all lines"
    most_paragraph_characters: Share = 0.20
    "characters in duplicate paragraphs, as a share of the characters of all paragraphs"
    most_top: tuple[Share, ...] = (0.20, 0.18, 0.16)
    "characters of the most frequent 2-gram, 3-gram, … as a share of the characters of all words"
    most_repeated: tuple[Share, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """characters of all repeated 5-grams, 6-grams, …, each counted once, as a share of those of all
    words"""

    def why(self, record):
        text = text_of(record, self.field)
        lines, paragraphs = _parts(r"\n+", text), _parts(r"\n{2,}", text)
        return (
            _duplicated("lines", lines, self.most_lines, self.most_line_characters)
            or _duplicated("paragraphs", paragraphs, self.most_paragraphs, self.most_paragraph_characters)
            or self._of_grams(text.split())
        )

    def _of_grams(self, words: list[str]) -> str:
        sizes = [len(word) for word in words]
        total = max(sum(sizes), 1)
        for n, most in enumerate(self.most_top, 2):
            share = _top(words, n) / total
            if share > most:
                return f"commonest {n}-gram: {share:.2f} of the characters, more than {most:g}"
        for n, most in enumerate(self.most_repeated, 5):
            share = _repeated(words, sizes, n) / total
            if share > most:
                return f"repeated {n}-grams: {share:.2f} of the characters, more than {most:g}"
        return ""


def _parts(separator: str, text: str) -> list[str]:
    return [part for part in map(str.strip, re.split(separator, text)) if part]


def _duplicated(name: str, parts: list[str], most: float, most_characters: float) -> str:
    seen, number, characters = set(), 0, 0
    for part in parts:
        if part in seen:
            number, characters = number + 1, characters + len(part)
        seen.add(part)
    share, of_characters = number / max(len(parts), 1), characters / max(sum(map(len, parts)), 1)
    if share > most:
        return f"duplicate {name}: {share:.2f} of them, more than {most:g}"
    if of_characters > most_characters:
        return f"characters in duplicate {name}: {of_characters:.2f}, more than {most_characters:g}"
    return ""


def _grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    # The slices differ in length on purpose: zip stops at the last whole n-gram.
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _top(words: list[str], n: int) -> int:
    """Return how many characters the most frequent n-gram takes, if it occurs at least twice.

    If several n-grams are equally frequent, the longest one counts.
    """
    counts = Counter(_grams(words, n))
    most = max(counts.values(), default=0)
    return max((count * sum(map(len, gram)) for gram, count in counts.items() if count == most > 1), default=0)


def _repeated(words: list[str], sizes: list[int], n: int) -> int:
    """Return the characters of the words in repeated n-grams. Each word counts once."""
    seen, end, total = set(), 0, 0
    for i, gram in enumerate(_grams(words, n)):
        if gram in seen:
            # Words before `end` were counted with an earlier n-gram that overlaps this one.
            total += sum(sizes[max(i, end) : i + n])
            end = i + n
        seen.add(gram)
    return total
