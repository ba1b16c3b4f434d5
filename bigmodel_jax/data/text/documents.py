"""The documents of a source: records with a usable text."""

from collections.abc import Iterator
from pathlib import Path

from bigmodel_jax.data.base import BadRecords, lacks
from bigmodel_jax.data.sources.lines import MOST_BYTES
from bigmodel_jax.data.sources.source import Source


def usable(source: Source, split: str, root: Path, bad: BadRecords) -> Iterator[tuple[str, str]]:
    """Yield (where, text) of every usable document of a split. `root` is the cache folder."""
    for where, record in source.records(split, root, bad):
        reason = lacks(record, "text") or wrong(record["text"])
        if reason:
            bad.skip(where, reason)
        else:
            yield where, record["text"]


def wrong(text: str | None) -> str:
    """Return what makes a document unusable; "" where nothing does."""
    if not isinstance(text, str):
        return "no text"
    if not text.strip():
        return "empty"
    # JSON may contain half of a surrogate pair, which no tokenizer can encode.
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        return f"not encodable as UTF-8 ({error.reason} at character {error.start})"
    return f"{size} bytes long; {MOST_BYTES} is the most" if size > MOST_BYTES else ""


def chunks(texts: Iterator[str], characters: int) -> Iterator[list[str]]:
    """Yield lists of texts with about this many characters together."""
    chunk, size = [], 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= characters:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
