"""Removes evaluation text from training text, as GPT-3 did (arXiv:2005.14165, appendix C)."""

import dataclasses
import functools
import glob
import json
import re
from collections.abc import Iterator
from pathlib import Path

from bigmodel_jax.core.paths import check_local
from bigmodel_jax.core.ranges import Count, CountOrZero
from bigmodel_jax.data.cleaning.step import Step, StepError, text_of
from bigmodel_jax.data.sources.opened import kind, opened

WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class Decontaminate(Step):
    """Cuts text that the `against` files share with a record, compared by n-grams of words.

    Each shared n-gram is cut out together with `window` characters on both sides. A piece between
    two cuts becomes a record of its own where it has `least` characters. A text that falls into
    more than `most_pieces` pieces is dropped. Words are compared in lower case, without
    punctuation. GPT-3 keeps n-grams that occur in more than 10 training documents. This step cuts
    them too, since it does not count them.
    """

    field: str = "text"
    "the record's field with the text"
    against: str = ""
    """evaluation files or glob patterns, comma-separated: .jsonl and .json (every text in them),
    else plain text"""
    ngram: Count = 13
    "words of an n-gram"
    window: CountOrZero = 200
    "characters that are cut on each side of an n-gram"
    least: CountOrZero = 200
    "the fewest characters of a piece that is kept"
    most_pieces: Count = 10
    "a text with more pieces is dropped"

    def reads(self):
        found = []
        for pattern in filter(None, map(str.strip, self.against.split(","))):
            check_local("against", pattern)
            matches = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
            if not matches:
                raise ValueError(f"against: {pattern!r} matches no file")
            found += matches
        if not found:
            raise ValueError("against: empty; files of evaluation text are needed")
        return [Path(path) for path in found]

    def clean(self, record):
        text = text_of(record, self.field)
        # Size and modification time are part of the key of `_known`, so a changed file is read
        # again.
        stamps = tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in _files(self))
        cuts = list(_cuts(text, _known(stamps, self.ngram), self.ngram, self.window))
        if not cuts:
            return [record], ""
        pieces = _between(cuts, len(text))
        if len(pieces) > self.most_pieces:
            return [], f"evaluation text: in {len(cuts)} places, {len(pieces)} pieces are more than {self.most_pieces}"
        left = [text[a:b] for a, b in pieces if b - a >= max(self.least, 1)]
        if not left:
            return [], f"evaluation text: no piece of {self.least} characters is left"
        return [record | {self.field: piece} for piece in left], ""


# `clean` runs for every record, so each process looks for the files only once.
@functools.cache
def _files(step: Decontaminate) -> list[Path]:
    return step.reads()


@functools.lru_cache(maxsize=2)
def _known(files: tuple, n: int) -> frozenset[str]:
    """Return all n-grams of the files. A text of fewer than n words has none."""
    grams = set()
    for name, _, _ in files:
        for text in _texts(Path(name)):
            words = [word.lower() for word in WORD.findall(text)]
            grams.update(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    return frozenset(grams)


def _texts(path: Path) -> Iterator[str]:
    try:
        with opened(path) as file:
            content = file.read().decode("utf-8")
        if kind(path) not in (".jsonl", ".json"):
            yield content
            return
        for part in content.split("\n") if kind(path) == ".jsonl" else [content]:
            yield from _strings(json.loads(part)) if part.strip() else ()
    except (ValueError, RecursionError) as error:
        raise StepError(f"against: {path} cannot be read: {error}") from error


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _cuts(text: str, known: frozenset[str], n: int, window: int) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of the spans that are cut, in order and without overlap."""
    words = list(WORD.finditer(text))
    lower = [match[0].lower() for match in words]
    begin = end = None
    for i in range(len(words) - n + 1):
        if " ".join(lower[i : i + n]) not in known:
            continue
        a, b = words[i].start() - window, words[i + n - 1].end() + window
        # Overlapping spans are merged. A span is finished once the next one begins after its end.
        if begin is not None and a > end:
            yield begin, end
            begin = None
        begin, end = (a if begin is None else begin), b
    if begin is not None:
        yield begin, end


def _between(cuts: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Return (begin, end) of the pieces that remain between the cuts."""
    begins, ends = [0] + [b for _, b in cuts], [a for a, _ in cuts] + [length]
    # A cut may reach beyond the text. The piece next to such a cut has no length and is left out.
    return [(a, b) for a, b in zip(begins, ends, strict=True) if b > a]
