"""Token statistics of a prepared corpus: tokens per record, vocabulary use and unknown tokens."""

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
from bigmodel_jax.data.text import token_shards
from bigmodel_jax.data.text.text import TextData, encoded_folder
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

RARE = 10  # a token with fewer occurrences is rare: a model learns little about it
SHOWN = 12  # how many of the most and least frequent tokens are shown


def add_to_card(folder: Path, corpus: Corpus, data: DataConfig) -> None:
    """Add token statistics to the folder's card if `data` is text from this corpus."""
    if not isinstance(data, TextData) or data.source is not corpus:
        return
    card = json.loads((folder / CARD).read_text("utf-8"))
    if folder != corpus.folder(data.root()):  # prepared into another folder than the cache's
        shards = {split: f"{folder}/{split}-*.array_record" for split in card["splits"]}
        data = dataclasses.replace(data, source=ArrayRecordFiles(**shards))
    tokenizer = data.open_tokenizer()
    card["tokens"] = {split: _of_split(tokenizer, encoded_folder(data, split)) for split in card["splits"]}
    files.replace(folder / CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def _of_split(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Return the statistics of the token shards in a folder. One shard is in memory at a time."""
    meta = token_shards.read_manifest(folder)
    numbers = range(len(meta["shards"]))
    # Each length includes the separator.
    lengths = (token_shards.read_index(folder, number).lengths - 1 for number in numbers)
    parts = (part for number in numbers for part in token_shards.read_tokens(folder, number, meta["dtype"]))
    return statistics(tokenizer, parts, lengths, meta["bytes"])


def statistics(
    tokenizer: Tokenizer, parts: Iterable[np.ndarray], lengths: Iterable[np.ndarray], num_bytes: int
) -> dict[str, Any]:
    """Return the statistics of a split.

    - parts: all tokens in pieces, separators included.
    - lengths: the tokens of each record, in pieces.
    - num_bytes: the size of the text.
    """
    counts = sum(np.bincount(part, minlength=tokenizer.vocab_size) for part in parts)
    # Separators come from the encoding of the corpus, and not from its text.
    counts[tokenizer.separator] = 0
    sizes = Counter()
    for part in lengths:
        bits = np.frexp(part)[1]  # the exponent is the number of bits of a whole number
        sizes.update(dict(zip(*(x.tolist() for x in np.unique(bits, return_counts=True)), strict=True)))
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
    """Return the id of the tokenizer's token for unknown text; None where none exists."""
    model = getattr(tokenizer.model, "model", tokenizer.model)  # a SentencePiece model has no inner model
    name = getattr(model, "unk_token", None) or "<unk>"
    return tokenizer.model.token_to_id(name)
