"""Images with one text each, decoded and tokenized once into the cache."""

import csv
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigmodel_jax.core.ranges import Count, CountOrZero
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import BadRecords, DataConfig, lacks, log_skipped
from bigmodel_jax.data.fields import Field, per_row, per_token
from bigmodel_jax.data.images import pictures
from bigmodel_jax.data.images.image_rows import shift
from bigmodel_jax.data.sources.lines import opened_text, parse_json, read_lines
from bigmodel_jax.data.sources.source import Source
from bigmodel_jax.data.sources.sources import Listings, Tfds
from bigmodel_jax.data.text import text
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, TokenizerConfig

FORMAT = 1  # raise it when the cached files change


# ---------------------------------------------------------------- files


@dataclasses.dataclass(frozen=True)
class CaptionFiles(Listings):
    """Images listed in caption files: JSON Lines (.jsonl), or tables with a header (.csv, .tsv).

    Image paths are relative to the caption file's folder.
    """

    image_field: str = "image"
    "the field with the image's path"
    text_field: str = "text"
    "the field with the text"

    def records(self, split, root, bad):
        for path in self.paths(split):
            for where, row, reason in _rows(path, (self.image_field, self.text_field), split):
                picture = path.parent / str((row or {}).get(self.image_field, ""))
                if not reason and not picture.is_file():
                    reason = f"no such picture: {picture}"
                if reason:
                    bad.skip(where, reason)
                else:
                    yield where, {"image": picture, "text": row[self.text_field]}


def _rows(path: Path, fields: tuple[str, str], split: str) -> Iterator[tuple[str, dict[str, Any] | None, str]]:
    """Yield (where, row, what is wrong with the row) for every line of a caption file."""
    if path.suffix == ".jsonl":
        for number, line, reason in read_lines(path):
            yield f"{path} line {number}", *((None, reason) if reason else _json_row(line, fields))
    elif path.suffix in (".csv", ".tsv"):
        with opened_text(path) as file:
            rows = csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t")
            for option, name in zip(("image_field", "text_field"), fields, strict=True):
                if name not in (rows.fieldnames or ()):
                    near = nearest(name, rows.fieldnames or ())
                    raise ValueError(f"data.source.{option}: {path} has no column {name!r}{near}")
            for row in rows:
                yield f"{path} line {rows.line_num}", row, _missing(row, fields)
    else:
        raise ValueError(
            f"data.source.{split}: {str(path)!r} is no caption file; its name must end in .jsonl, .csv or .tsv"
        )


def _json_row(line: bytes, fields: tuple[str, str]) -> tuple[dict[str, Any] | None, str]:
    row, reason = parse_json(line)
    if reason:
        return None, reason
    if not isinstance(row, dict):
        return None, f"a JSON object is needed, not {type(row).__name__}"
    return row, _missing(row, fields)


def _missing(row: dict[str, Any], fields: tuple[str, str]) -> str:
    """Return the name of a field without text, or "" if each field has a text."""
    for name in fields:
        if not isinstance(row.get(name), str) or not row[name].strip():
            return f"no text in field {name!r}{nearest(name, map(str, row)) if name not in row else ''}"
    return ""


# ---------------------------------------------------------------- rows


@dataclasses.dataclass(frozen=True)
class ImageTextData(DataConfig):
    """Images with one text each, for contrastive training and text-conditioned generation.

    A batch holds

    - image (B, S, S, 3) float32 in 0 .. 1;
    - tokens (B, T) int32: the text, truncated, then the tokenizer's separator;
    - segment_ids (B, T) int32: 1, and 0 for padding;
    - weights (B,) float32, all 1.

    The eos_token_id of a CLIP model must be the separator.
    """

    required_by: ClassVar = {
        "text.vocab_size": "tokenizer",
        "text.max_seq_len": "seq_len",
        "eos_token_id": "tokenizer",
        "vision.image_shape": "image_size",
        "image_shape": "image_size",
    }

    compared: ClassVar = DataConfig.compared | {
        "tokenizer": "tokenizer",
        "seq_len": "shape",
        "image_size": "prepares",
        "max_shift": "training",
    }

    source: Source = Tfds("emoji")
    "where the pairs come from"
    tokenizer: TokenizerConfig = TokenizerConfig("wordpiece", vocab_size=1024)
    "the tokenizer file, or the kind and size of one that is trained on the training texts"
    image_size: Count = 32
    "side in pixels (S); images are scaled by their shorter side and cut at the centre"
    seq_len: Count = 16
    "tokens of a text (T), the separator included; longer texts are truncated"
    max_shift: CountOrZero = 0
    """training images are shifted by up to this many pixels each way; the uncovered edge becomes
    white"""

    def __post_init__(self):
        for name, least in (("image_size", 1), ("seq_len", 2), ("max_shift", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name}: {getattr(self, name)}; it must be {least} or more")

    def open(self, split: str) -> "ImageTextRows":
        folder = decoded_folder(self, split)
        meta = json.loads((folder / "meta.json").read_text())
        log_skipped(split, meta["bad_records"])
        # Texts are tokenized here and not in the cache, so another tokenizer needs no new decoding.
        texts = json.loads((folder / "texts.json").read_text("utf-8"))
        shape = (len(texts), self.image_size, self.image_size, 3)
        images = np.asarray(np.memmap(folder / "image.bin", np.uint8, mode="r", shape=shape))
        return ImageTextRows(images, encode(self.open_tokenizer(), texts, self.seq_len), texts, self.max_shift, meta)

    def row(self) -> dict[str, Field]:
        texts = per_token(["tokens", "segment_ids"], self.seq_len)
        return {"image": Field((self.image_size, self.image_size, 3))} | texts | per_row(["weights"], "float32")

    def requirements(self) -> dict:
        tokenizer, shape = self.open_tokenizer(), (self.image_size, self.image_size, 3)
        tower = {"text.vocab_size": tokenizer.vocab_size, "text.max_seq_len": self.seq_len}
        return tower | {"vision.image_shape": shape, "image_shape": shape, "eos_token_id": tokenizer.separator}

    def conditions(self, num: int) -> tuple[dict[str, np.ndarray], list[str]]:
        """Return texts from all over the validation split as conditions of generated images."""
        rows = self.open("validation")
        chosen = np.linspace(0, len(rows) - 1, num).astype(int)
        batch = rows.batch(chosen, None)
        return {name: batch[name] for name in ("tokens", "segment_ids")}, [rows.texts[i] for i in chosen]

    def open_tokenizer(self) -> Tokenizer:
        return text.tokenizer(self)

    def save_artifacts(self, folder: Path) -> None:
        text.save_tokenizer(self, folder / "tokenizer.json")


@dataclasses.dataclass(frozen=True)
class ImageTextRows:
    """The rows of one split.

    - images (N, S, S, 3) uint8.
    - tokens (N, T) int32, -1 for padding.
    - meta: the contents of meta.json.
    """

    shown_as: ClassVar[str] = "pairs"  # how the `data` verb displays the rows

    images: np.ndarray
    tokens: np.ndarray
    texts: list[str]
    max_shift: int
    meta: dict

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        images, tokens = self.images[indices], self.tokens[indices]
        if noise is not None and self.max_shift:
            # A shift fills in zeros. On inverted images these become white.
            images = 255 - shift(255 - images, noise, self.max_shift)
        return {
            "image": images.astype(np.float32) / np.float32(255),
            # -1 marks padding, and is no row of an embedding table.
            "tokens": np.maximum(tokens, 0),
            "segment_ids": (tokens >= 0).astype(np.int32),
            "weights": np.ones(len(indices), np.float32),
        }

    def counts(self) -> dict:
        lengths = (self.tokens >= 0).sum(axis=1)
        return {
            "pairs": len(self),
            "distinct texts": len(set(self.texts)),
            "pixels a side": self.images.shape[1],
            "tokens a text, mean": float(lengths.mean()),
            f"texts of all {self.tokens.shape[1]} tokens": int((lengths == self.tokens.shape[1]).sum()),
            "skipped records": len(self.meta["bad_records"]),
        }


def encode(tokenizer: Tokenizer, texts: list[str], seq_len: int) -> np.ndarray:
    """Return (N, seq_len) int32: each text, truncated, then the separator, then -1 as padding."""
    tokens = np.full((len(texts), seq_len), -1, np.int32)
    for row, ids in enumerate(tokenizer.encode_batch(texts)):
        # The separator survives a truncation, because CLIP takes the text's embedding there.
        ids = ids[: seq_len - 1]
        tokens[row, : len(ids)], tokens[row, len(ids)] = ids, tokenizer.separator
    return tokens


# ---------------------------------------------------------------- the cache


def decoded_folder(cfg: ImageTextData, split: str) -> Path:
    """Return the cache folder with image.bin, texts.json and meta.json. Fill it if missing."""
    facts = cache.key(cfg.source.fingerprint(split, cfg.root()), cfg.image_size, cfg.max_bad_records)
    name = f"{cfg.source.short_name()}-{split}-{facts}"
    return cache.build(cfg.root() / f"image-text-{FORMAT}" / name, lambda folder: _decode(cfg, split, folder))


def _decode(cfg: ImageTextData, split: str, folder: Path) -> None:
    """Write a split's usable pairs into `folder`. Only one is in memory at a time."""
    bad, texts = BadRecords(cfg.max_bad_records), []
    with open(folder / "image.bin", "wb") as file:
        for where, record in cfg.source.records(split, cfg.root(), bad):
            image, reason = _picture(record)
            if reason:
                bad.skip(where, reason)
            else:
                pictures.square(image, cfg.image_size).tofile(file)
                texts.append(record["text"])
    if not texts:
        raise ValueError(f"data.source: the {split} split of {cfg.source} has no pairs of a picture and a text")
    (folder / "texts.json").write_text(json.dumps(texts, ensure_ascii=False, indent=0), encoding="utf-8")
    meta = {"split": split, "pairs": len(texts), "bad_records": bad.skipped}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _picture(record: dict[str, Any]) -> tuple[np.ndarray, str]:
    """Return (image (H, W, 3) uint8, "") of a record, or (an array, what makes it unusable)."""
    image, none = record.get("image"), np.zeros(0)
    if missing := lacks(record, "image", "text"):
        return none, missing
    if not isinstance(record.get("text"), str) or not record["text"].strip():
        return none, "no text"
    if isinstance(image, Path):
        try:
            image = pictures.read(image)
        except ValueError as error:
            return none, str(error)
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        return none, f"its picture is {image.dtype} {image.shape}; it must be uint8, of three channels"
    return image, ""
