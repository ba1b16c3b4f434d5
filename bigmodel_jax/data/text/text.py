"""Text as rows of tokens. Documents are tokenized once, into shards in the cache."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from bigmodel_jax.core import processes
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.core.ranges import Count
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import BadRecords, DataConfig, inner, log_skipped
from bigmodel_jax.data.fields import Field, per_token
from bigmodel_jax.data.sources.source import Source
from bigmodel_jax.data.sources.sources import Tfds
from bigmodel_jax.data.text import baseline, packing, token_shards, token_stream, tokenized
from bigmodel_jax.data.text.documents import usable
from bigmodel_jax.data.text.packing import Packing
from bigmodel_jax.data.text.token_stream import TokenStream
from bigmodel_jax.data.text.tokenized import Job
from bigmodel_jax.data.tokenizers import special_tokens, tokenizers
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, TokenizerConfig

FORMAT = 1  # raise it when the tokenizers' files change


@dataclasses.dataclass(frozen=True)
class TextData(DataConfig):
    """Documents as rows of tokens for next-token prediction."""

    levels = tuple(
        Metric(
            f"{key}_bits_per_byte",
            f"{name}, bits per byte",
            form="{:.3f}",
            beside="bits_per_byte",
            level=True,
            label=name,
        )
        for key, name in (("xz_primed", "xz -9 primed"), ("xz", "xz -9"))
    )

    required_by: ClassVar = {"vocab_size": "tokenizer", "max_seq_len": "seq_len"}
    compared: ClassVar = DataConfig.compared | {"tokenizer": "tokenizer", "seq_len": "shape", "packing": "training"}

    source: Source = Tfds("sotu")
    "where the documents come from"
    tokenizer: TokenizerConfig = TokenizerConfig()
    "the tokenizer file, or the kind and size of one that is trained on the training texts"
    seq_len: Count = 256
    "tokens of a row"
    packing: Packing = "concat"
    """concat: documents continue over row ends; first_fit, best_fit: whole documents packed; none:
    one per row"""

    def __post_init__(self):
        if self.seq_len < 1:
            raise ValueError(f"data.seq_len: {self.seq_len} must be positive")

    def open(self, split: str) -> "TextRows":
        tokens, offsets, meta = open_tokens(encoded_folder(self, split))
        log_skipped(split, meta["bad_records"])
        plan = packing.make_plan(self.packing, offsets, self.seq_len)
        token_bytes = np.load(tokenizer_folder(self) / "token_bytes.npy")
        # A tokenizer trained here begins a text with its separator. A published tokenizer may use
        # another token.
        start = tokenizer(self).start if self.tokenizer.path else meta["separator"]
        return TextRows(tokens, offsets, plan, self.seq_len, meta["separator"], start, token_bytes, meta)

    def row(self) -> dict[str, Field]:
        return packing.row(self.seq_len) | per_token(["target_bytes"], self.seq_len, evaluation=True)

    def requirements(self) -> dict:
        return {"vocab_size": vocab_size(self), "max_seq_len": self.seq_len}

    def baselines(self) -> dict[str, float]:
        alone, primed = xz_baseline(self)
        return {"xz_bits_per_byte": alone, "xz_primed_bits_per_byte": primed}

    def open_tokenizer(self) -> Tokenizer:
        return tokenizer(self)

    def save_artifacts(self, folder: Path) -> None:
        save_tokenizer(self, folder / "tokenizer.json")


@dataclasses.dataclass(frozen=True)
class TextRows:
    """The rows of one split.

    - stream: `S d1 S d2 ... S dn S`, with S the separator and d the documents.
    - offsets (documents + 1,): the position of each S.
    - start: the token that a model reads at the beginning of a document.
    - token_bytes: UTF-8 bytes of each token.
    - meta: counts and names.
    """

    shown_as: ClassVar[str] = "text"  # how the `data` verb displays the rows

    stream: TokenStream
    offsets: np.ndarray
    plan: packing.Plan
    seq_len: int
    separator: int
    start: int
    token_bytes: np.ndarray
    meta: dict

    def __len__(self) -> int:
        return self.plan.num_rows

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        out = packing.collate(self.stream, self.plan, indices, self.seq_len, self.offsets, self.start)
        # Byte counts are all 0 if the tokens do not determine the text.
        if noise is None and self.token_bytes.any():
            out["target_bytes"] = self.token_bytes[out["targets"]]
        return out

    def counts(self) -> dict:
        meta, cells = self.meta, len(self) * self.seq_len
        return {
            "documents": meta["documents"],
            "characters": meta["characters"],
            "UTF-8 bytes": meta["bytes"],
            "tokens": meta["tokens"],
            "bytes per token": meta["bytes"] / meta["tokens"],
            f"rows of {self.seq_len} tokens": len(self),
            # The pieces of all rows together hold every token of the stream but the last.
            "padding, % of row cells": 100 * (1 - (len(self.stream) - 1) / cells),
            "skipped records": len(meta["bad_records"]),
        }

    def document(self, i: int) -> np.ndarray:
        """Return the token ids of document i without separators."""
        return self.stream[self.offsets[i] + 1 : self.offsets[i + 1]]


# ---------------------------------------------------------------- the tokenizer


def _tokenizer(cfg: TextData) -> tuple[str, Callable[[], Tokenizer]]:
    """Return (the name of the tokenizer's cache folder, a function that makes the tokenizer)."""
    tok = cfg.tokenizer
    if tok.path:
        if not Path(tok.path).is_file():
            raise ValueError(f"data.tokenizer.path: no such file: {tok.path}")
        return f"file-{special_tokens.fingerprint(tok.path)}", lambda: tokenizers.load_tokenizer(tok.path)
    if tok.kind == "bytes":
        return "bytes", tokenizers.make_bytes
    # Tokenizers that are trained on different texts must not share a folder.
    name = f"{tok.kind}-{tok.vocab_size}-{cache.key(_source_key(cfg, 'train'))}"
    return name, functools.partial(_train_tokenizer, cfg)


def tokenizer_folder(cfg: TextData) -> Path:
    """Return the cache folder with tokenizer.json and token_bytes.npy. Fill it if missing."""
    name, make = _tokenizer(cfg)

    def write(folder: Path) -> None:
        tokenizer = make()
        tokenizer.save(folder / "tokenizer.json")
        np.save(folder / "token_bytes.npy", tokenizer.token_bytes())

    return cache.build(cfg.root() / f"tokenizers-{FORMAT}" / name, write)


def _train_tokenizer(cfg: TextData) -> Tokenizer:
    train = tokenizers.TRAINERS[cfg.tokenizer.kind]
    return train((text for _, text in documents(cfg, "train")), cfg.tokenizer.vocab_size)


def tokenizer(cfg: TextData) -> Tokenizer:
    """Return the config's tokenizer, trained or loaded at first use."""
    return tokenizers.load_tokenizer(tokenizer_folder(cfg) / "tokenizer.json")


def save_tokenizer(cfg: TextData, path: str | Path) -> None:
    """Write the config's tokenizer.json to `path`."""
    tokenizers.copy_tokenizer(tokenizer_folder(cfg), path)


def vocab_size(cfg: TextData) -> int:
    """Return the number of token ids. BPE trained on little text may have fewer than asked for."""
    return len(np.load(tokenizer_folder(cfg) / "token_bytes.npy"))


# ---------------------------------------------------------------- the documents


def _source_key(cfg: TextData, split: str) -> list:
    return [cfg.source.fingerprint(split, cfg.root()), cfg.max_bad_records]


def documents(cfg: TextData, split: str, bad: BadRecords | None = None) -> Iterator[tuple[str, str]]:
    """Yield (where, text) of every usable document of a split. Raises ValueError without any."""
    found = False
    for found in usable(cfg.source, split, cfg.root(), bad or BadRecords(cfg.max_bad_records)):
        yield found
    if not found:
        raise ValueError(f"data.source: the {split} split of {cfg.source} has no documents")


def splits(data: DataConfig) -> Iterator[tuple[TextData, str]]:
    """Yield (config, split) for every split of every `TextData` in a data config."""
    for part in inner(data):
        if isinstance(part, TextData):
            yield from ((part, split) for split in ("train", "validation") if part.source.has(split, part.root()))


def tokens_folder(cfg: TextData, split: str) -> Path:
    """Return the cache folder of the token shards of a split. It may not exist yet."""
    name = f"{cfg.source.short_name()}-{split}-{cache.key(_source_key(cfg, split), _tokenizer(cfg)[0])}"
    return cfg.root() / f"text-{tokenized.FORMAT}" / name


def encoded_folder(cfg: TextData, split: str, workers: int = 1, say: Callable[[int, int], None] | None = None) -> Path:
    """Return the `tokens_folder` of a split with its shards and manifest. Fill it if missing.

    `say` reports progress as in `tokenized.make`.
    """
    tokenizer = tokenizer_folder(cfg) / "tokenizer.json"
    job = Job(cfg.source, split, cfg.root(), tokenizer, cfg.max_bad_records)
    return tokenized.make(job, tokens_folder(cfg, split), workers, say or (lambda done, of: None))


def tokenize_together(data: DataConfig) -> None:
    """Tokenize all texts of a data config with all processes of the job.

    A single process does this in `open`.
    """
    if processes.place()[1] > 1:
        for cfg, split in splits(data):
            encoded_together(cfg, split)


def encoded_together(cfg: TextData, split: str, *how) -> Path:
    """Return `encoded_folder`, made by all processes of a job together."""

    def ready() -> None:
        if not tokenized.is_whole(tokens_folder(cfg, split)):
            tokenizer_folder(cfg)
            cfg.source.shards(split, cfg.root(), BadRecords(cfg.max_bad_records))

    processes.in_turn("texts", ready)
    return encoded_folder(cfg, split, *how)


def open_tokens(folder: Path) -> tuple[TokenStream, np.ndarray, dict]:
    """Return (stream, offsets, manifest without shards) of an `encoded_folder`."""
    meta = token_shards.read_manifest(folder)
    shards = meta.pop("shards")
    lengths = [token_shards.read_index(folder, number).lengths for number in range(len(shards))]
    sizes = np.array([shard["tokens"] + shard["documents"] for shard in shards])
    return TokenStream(folder, sizes, np.dtype(meta["dtype"]), meta["separator"]), token_stream.offsets(lengths), meta


def xz_baseline(cfg: TextData) -> tuple[float, float]:
    """Return `xz_bits_per_byte` of both splits or of samples; cached after some 10 seconds."""
    keys = [_source_key(cfg, split) for split in ("train", "validation")]
    folder = cfg.root() / "xz-2" / f"{cfg.source.short_name()}-{cache.key(keys)}"
    if not folder.exists():
        # The figures are computed before the folder is made, so an interruption leaves no
        # unfinished folder.
        most = {"train": baseline.TRAIN, "validation": baseline.VALIDATION}
        texts = (baseline.sample((text for _, text in documents(cfg, split)), size) for split, size in most.items())
        found = baseline.xz_bits_per_byte(*texts)
        cache.build(folder, lambda folder: (folder / "bits_per_byte.json").write_text(json.dumps(found)))
    return tuple(json.loads((folder / "bits_per_byte.json").read_text()))
