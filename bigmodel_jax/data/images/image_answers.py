"""Images with a prompt and an answer each, for a language model that reads images.

A row is the image's tokens, the start token, the prompt and the answer. The loss covers the answer
alone. Images are decoded once into the cache.

Shapes: B batch, N squares of an image, S pixels per side, T tokens.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.core.ranges import Count, CountOrZero, NonNegative, Positive, ShareAboveZero
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import BadRecords, DataConfig, lacks, log_skipped
from bigmodel_jax.data.fields import Field, per_token
from bigmodel_jax.data.images import pictures, tiles
from bigmodel_jax.data.images.answer_rows import AnswerRows, ImagePrompts
from bigmodel_jax.data.images.channels import Channels
from bigmodel_jax.data.sources.source import Source
from bigmodel_jax.data.sources.sources import Tfds
from bigmodel_jax.data.text import chat
from bigmodel_jax.data.tokenizers import tokenizers
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, TokenizerConfig

FORMAT = 1  # raise it when the cached files change


@dataclasses.dataclass(frozen=True)
class ImageAnswerData(DataConfig):
    """Images with prompts and answers.

    A batch holds

    - image (B, S, S, 3) float32 in 0 .. 1, or (B, N, S, S, 3) with `tiles`;
    - tokens, targets, segment_ids, positions and prefix (B, T) int32; prefix is 1 before the
      answer;
    - weights (B, T) float32, 1 where the target belongs to the answer.

    The image's tokens have the id that follows the tokenizer's last.
    """

    required_by: ClassVar = {
        "vocab_size": "tokenizer",
        "max_seq_len": "seq_len",
        "image_token_id": "tokenizer",
        "image_tokens": "image_tokens",
        "vision.image_shape": "image_size",
    }
    exact: ClassVar = frozenset({"image_token_id", "image_tokens"})
    compared: ClassVar = DataConfig.compared | {
        "tokenizer": "tokenizer",
        "seq_len": "shape",
        "max_shift": "training",
        "image_tokens": "shape",
        **dict.fromkeys(("image_size", "fit", "tiles", "prompt", "template_path", "mean", "spread"), "prepares"),
    }

    source: Source = Tfds("emoji_captions")
    "records with image, text (the answer) and optionally prompt"
    tokenizer: TokenizerConfig = TokenizerConfig("bpe", vocab_size=1024)
    "the tokenizer file, or the kind and size of one that is trained on the training texts"
    template_path: str = ""
    """a chat_template.jinja: the prompt becomes the user's message, after the image's tokens;
    empty: none"""
    prompt: str = ""
    "the prompt of records that have none"
    image_size: Count = 32
    "side of a square in pixels (S)"
    image_tokens: Count = 16
    "tokens per square of an image; it must equal the model's `image_tokens`"
    fit: Literal["cut", "pad"] = "cut"
    "how an image becomes a square: cut at the centre, or pad with white"
    tiles: CountOrZero = 0
    """0, or 2 or more: up to this many tiles come before the whole image, in the grid nearest to
    its shape"""
    mean: tuple[float, ...] = ()
    spread: tuple[Positive, ...] = ()
    """the model reads (pixel in 0 .. 1 - mean) / spread, with one number per channel; (): pixels as
    they are"""
    max_shift: CountOrZero = 0
    """training images are shifted by up to this many pixels each way; the uncovered edge becomes
    white"""
    seq_len: Count = 48
    "tokens of a row (T); a record with more is a bad record"

    def __post_init__(self):
        if self.tiles == 1:
            raise ValueError("data.tiles = 1; it must be 0, or 2 or more: one tile is the whole picture")
        if (len(self.mean), len(self.spread)) not in ((0, 0), (3, 3)):
            raise ValueError(
                f"data.mean = {self.mean} and data.spread = {self.spread}; both must have 3 numbers, or none"
            )
        if self.tiles and self.max_shift:
            raise ValueError(f"data.max_shift = {self.max_shift} with data.tiles = {self.tiles}; one of them must be 0")

    @property
    def num_squares(self) -> int:
        """The largest number of squares of an image: one per tile, and one for the whole image."""
        return self.tiles + 1 if self.tiles else 1

    def open(self, split: str) -> AnswerRows:
        images, records, meta = self.decoded(split)
        tokenizer, template, bad = self.open_tokenizer(), self.template(), BadRecords(self.max_bad_records)
        bad.skipped += [tuple(one) for one in meta["bad_records"]]
        rows, kept = [], []
        for n, record in enumerate(records):
            before = self.before(tokenizer, template, record["prompt"], record["squares"])
            # The model learns the stop token with the answer, so that generation ends there.
            answer = [*tokenizer.encode(record["answer"]), tokenizer.stops[0]]
            # The last token is only a target, so it needs no place in the row.
            if (length := len(before) + len(answer) - 1) > self.seq_len:
                bad.skip(
                    record["where"],
                    f"it has {length} tokens with its image; it must have at most data.seq_len = {self.seq_len}",
                )
                continue
            rows.append((before, answer))
            kept.append(n)
        log_skipped(split, bad.skipped)
        if not rows:
            raise ValueError(f"data.source: the {split} split of {self.source} has no picture with an answer")
        kept, counts = (
            np.array(kept),
            {"seq_len": self.seq_len, "max_shift": self.max_shift, "skipped": len(bad.skipped)},
        )
        return AnswerRows(images, self.floats, kept, rows, [records[n] for n in kept], **counts)

    def before(self, tokenizer: Tokenizer, template: str, prompt: str, squares: int) -> list[int]:
        """Return the tokens before an answer: the image's, then the prompt's."""
        image = [tokenizer.vocab_size] * (squares * self.image_tokens)
        prompt = prompt or self.prompt
        if template:
            return image + chat.prompt(template, [{"role": "user", "content": prompt}], tokenizer)
        return [*image, tokenizer.start, *tokenizer.encode(prompt)]

    def template(self) -> str:
        if self.template_path and not Path(self.template_path).is_file():
            raise ValueError(f"data.template_path = {self.template_path!r}: no such file")
        return Path(self.template_path).read_text() if self.template_path else ""

    def asked(self, path, prompt, tokenizer, template):
        found = tiles.squares(pictures.read(path), self.image_size, self.tiles, self.fit)
        tokens = self.before(tokenizer, template if self.template_path else "", prompt, len(found))
        return tokens, {"image": self.floats(self.filled(found)[None])}

    def filled(self, squares: np.ndarray) -> np.ndarray:
        """Return (S, S, 3), or with tiles (N, S, S, 3), where missing squares are black.

        No token stands for a missing square.
        """
        if not self.tiles:
            return squares[0]
        return np.pad(squares, ((0, self.num_squares - len(squares)), (0, 0), (0, 0), (0, 0)))

    def floats(self, images: np.ndarray) -> np.ndarray:
        """Return uint8 images (..., 3) as the model reads them: float32, normalized."""
        return Channels(self.mean, self.spread).floats(images)

    def image_shape(self) -> tuple[int, ...]:
        square = (self.image_size, self.image_size, 3)
        return (self.num_squares, *square) if self.tiles else square

    def row(self) -> dict[str, Field]:
        texts = per_token(["tokens", "targets", "segment_ids", "positions", "prefix"], self.seq_len)
        return {"image": Field(self.image_shape())} | texts | per_token(["weights"], self.seq_len, "float32")

    def requirements(self) -> dict:
        num = self.open_tokenizer().vocab_size
        sizes = {"vocab_size": num, "max_seq_len": self.seq_len, "image_token_id": num}
        return sizes | {"image_tokens": self.image_tokens, "vision.image_shape": (self.image_size, self.image_size, 3)}

    # ---- the cache

    def decoded(self, split: str) -> tuple[np.ndarray, list[dict], dict]:
        """Return (images uint8, their records, meta) of a split's usable records.

        They are prepared into the cache where they are missing.
        """
        # The cache keeps texts as they are, so another tokenizer or seq_len decodes no image.
        facts = cache.key(
            self.source.fingerprint(split, self.root()), self.image_size, self.fit, self.tiles, self.max_bad_records
        )
        name = f"{self.source.short_name()}-{split}-{facts}"
        folder = cache.build(self.root() / f"image-answers-{FORMAT}" / name, lambda out: self._decode(split, out))
        records = json.loads((folder / "records.json").read_text("utf-8"))
        shape = (len(records), *self.image_shape())
        images = np.asarray(np.memmap(folder / "image.bin", np.uint8, mode="r", shape=shape))
        return images, records, json.loads((folder / "meta.json").read_text())

    def _decode(self, split: str, folder: Path) -> None:
        bad, records = BadRecords(self.max_bad_records), []
        with open(folder / "image.bin", "wb") as file:
            for where, record in self.source.records(split, self.root(), bad):
                try:
                    image, answer = picture(record), text_of(record)
                except ValueError as error:
                    bad.skip(where, str(error))
                    continue
                squares = tiles.squares(image, self.image_size, self.tiles, self.fit)
                self.filled(squares).tofile(file)
                prompt = str(record.get("prompt", ""))
                records.append({"where": where, "prompt": prompt, "answer": answer, "squares": len(squares)})
        if not records:
            raise ValueError(f"data.source: the {split} split of {self.source} has no picture with an answer")
        (folder / "records.json").write_text(json.dumps(records, ensure_ascii=False, indent=0), encoding="utf-8")
        (folder / "meta.json").write_text(json.dumps({"split": split, "bad_records": bad.skipped}))

    # ---- the tokenizer

    def tokenizer_file(self) -> Path:
        """Return the named tokenizer.json, or one trained on the training prompts and answers."""
        if self.tokenizer.path:
            if not Path(self.tokenizer.path).is_file():
                raise ValueError(f"data.tokenizer.path = {self.tokenizer.path!r}: no such file")
            return Path(self.tokenizer.path)
        kind, size = self.tokenizer.kind, self.tokenizer.vocab_size
        facts = cache.key(self.source.fingerprint("train", self.root()), kind, size, self.prompt, self.max_bad_records)

        def write(folder: Path) -> None:
            if kind == "bytes":
                return tokenizers.make_bytes().save(folder / "tokenizer.json")
            records = self.decoded("train")[1]
            texts = [x for record in records for x in (record["prompt"] or self.prompt, record["answer"]) if x]
            tokenizers.TRAINERS[kind](iter(texts), size).save(folder / "tokenizer.json")

        return cache.build(self.root() / f"image-answer-tokenizers-{FORMAT}" / facts, write) / "tokenizer.json"

    def open_tokenizer(self) -> Tokenizer:
        return tokenizers.load_tokenizer(self.tokenizer_file())

    def save_artifacts(self, folder: Path) -> None:
        self.open_tokenizer().save(folder / "tokenizer.json")
        if self.template_path:
            files.replace(folder / "chat_template.jinja", self.template())


@dataclasses.dataclass(frozen=True)
class ImagePromptData(ImageAnswerData):
    """The same images as prompts that an evaluation set answers (`eval.sets`).

    A record's answer is the reference that the generated answer is compared with.
    """

    prompts: ClassVar[bool] = True
    prompt_field: ClassVar[str] = "prompt"
    rollouts: ClassVar[str] = ""

    max_tokens: Count = 24
    "the most tokens of an answer"
    eval_temperature: NonNegative = 0.0
    "sampling temperature; 0: the most likely token"
    top_k: CountOrZero = 0  # 0 = all
    top_p: ShareAboveZero = 1.0
    "sample from the most likely tokens that reach this probability together"
    slots: Count = 64
    "answers that are generated at once"

    def validate(self, batch_size: int) -> None:
        raise ValueError("data: ImagePromptData is for evaluation sets (eval.sets); a run trains on ImageAnswerData")

    def open(self, split: str) -> ImagePrompts:
        return ImagePrompts(super().open(split))


def picture(record: dict[str, Any]) -> np.ndarray:
    """Return a record's image (H, W, 3) uint8. Raises ValueError with what makes it unusable."""
    if missing := lacks(record, "image"):
        raise ValueError(missing)
    image = pictures.read(record["image"]) if isinstance(record["image"], Path) else np.asarray(record["image"])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"its picture is {image.dtype} {image.shape}; it must be uint8, of three channels")
    return image


def text_of(record: dict[str, Any]) -> str:
    """Return a record's answer. Raises ValueError where there is none."""
    if missing := lacks(record, "text"):
        raise ValueError(missing)
    if not isinstance(record["text"], str) or not record["text"].strip():
        raise ValueError("its answer is no text, or empty")
    return record["text"]
