"""What a tokenizer makes of a prepared corpus: tokens of a record, use of the vocabulary, tokens that it does not know."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.data.base import DataConfig
from bigmodel_jax.data.corpus.card import by_range
from bigmodel_jax.data.corpus.corpus import Corpus
from bigmodel_jax.data.corpus.prepare import CARD
from bigmodel_jax.data.sources.array_record_files import ArrayRecordFiles
from bigmodel_jax.data.text.text import TextData, TextRows
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

RARE = 10  # a token with fewer occurrences is rare: little is learned of it
SHOWN = 12  # tokens of either end
PART = 1 << 22  # tokens counted at a time


def add_to_card(folder: Path, corpus: Corpus, data: DataConfig) -> None:
    """Writes the token statistics into the folder's card, where the data is text and its source is this corpus."""
    if not isinstance(data, TextData) or data.source is not corpus:
        return
    card = json.loads((folder / CARD).read_text("utf-8"))
    if folder != corpus.folder(data.root()):  # prepared elsewhere, from where it will be read
        shards = {split: f"{folder}/{split}-*.array_record" for split in card["splits"]}
        data = dataclasses.replace(data, source=ArrayRecordFiles(**shards))
    tokenizer = data.open_tokenizer()
    card["tokens"] = {split: of_rows(tokenizer, data.open(split)) for split in card["splits"]}
    files.replace(folder / CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def of_rows(tokenizer: Tokenizer, rows: TextRows) -> dict[str, Any]:
    places = range(0, len(rows.stream), PART)
    parts = (rows.stream[place : place + PART] for place in places)
    lengths = np.diff(rows.offsets) - 1  # without the separator
    return statistics(tokenizer, parts, [lengths], rows.meta["bytes"])


def statistics(
    tokenizer: Tokenizer, parts: Iterable[np.ndarray], lengths: Iterable[np.ndarray], num_bytes: int
) -> dict[str, Any]:
    """parts: all tokens, separators included, in pieces; lengths: tokens of each record, in pieces; num_bytes: of the text."""
    counts = sum(np.bincount(part, minlength=tokenizer.vocab_size) for part in parts)
    counts[tokenizer.separator] = 0
    sizes = Counter()
    for part in lengths:
        sizes.update(np.frexp(part)[1].tolist())  # the exponent of a whole number says how many bits it has
    total, used = int(counts.sum()), int((counts > 0).sum())
    order = np.argsort(-counts, kind="stable")
    unknown = _unknown(tokenizer)
    return {
        "tokens": total,
        "tokens of a record": by_range(sizes),
        "tokens per byte": round(total / max(num_bytes, 1), 4),
        "vocabulary": tokenizer.vocab_size,
        "used": used,
        f"used fewer than {RARE} times": int(((counts > 0) & (counts < RARE)).sum()),
        "unknown": int(counts[unknown]) if unknown is not None else None,
        "commonest": _named(tokenizer, counts, order[: min(SHOWN, used)]),
        "rarest": _named(tokenizer, counts, order[max(used - SHOWN, 0) : used][::-1]),
    }


def _named(tokenizer: Tokenizer, counts: np.ndarray, ids: np.ndarray) -> list[list]:
    return [[tokenizer.piece(i), int(counts[i])] for i in ids.tolist()]


def _unknown(tokenizer: Tokenizer) -> int | None:
    """The id of what a tokenizer writes for text that it has no token of; None for one that has none."""
    name = getattr(tokenizer.model.model, "unk_token", None) or "<unk>"
    return tokenizer.model.token_to_id(name)
