"""Rows of images with answers, and the same rows as prompts."""

import base64
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from bigmodel_jax.data.images import pictures
from bigmodel_jax.data.images.image_rows import shift


@dataclasses.dataclass(frozen=True)
class AnswerRows:
    """The rows of one split.

    - images: uint8. Row n has images[places[n]].
    - floats: turns uint8 images into the model's input.
    - texts: for each row, the tokens before the answer, and the tokens of the answer.
    - records: the records of the source.
    - max_shift: the largest random shift in training, in pixels.
    - skipped: the number of bad records.
    """

    shown_as: ClassVar[str] = "arrays"  # how the `data` verb displays the rows

    images: np.ndarray
    floats: Callable[[np.ndarray], np.ndarray]
    places: np.ndarray
    texts: list[tuple[list[int], list[int]]]
    records: list[dict[str, Any]]
    seq_len: int
    max_shift: int
    skipped: int

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        shape = (len(indices), self.seq_len)
        whole, prefix = np.zeros((len(indices), self.seq_len + 1), np.int32), np.zeros(shape, np.int32)
        segments, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        for row, index in enumerate(indices):
            before, answer = self.texts[index]
            begin, end = len(before), len(before) + len(answer)
            whole[row, :begin], whole[row, begin:end] = before, answer
            # The target is the next token, so the answer's weights begin one position early.
            segments[row, : end - 1], prefix[row, :begin], weights[row, begin - 1 : end - 1] = 1, 1, 1
        images = self.images[self.places[indices]]
        if noise is not None and self.max_shift:
            # A shift fills in zeros. On inverted images these become white.
            images = 255 - shift(255 - images, noise, self.max_shift)
        return {
            "image": self.floats(images),
            # The last token of an answer is only a target, so the input ends one token earlier.
            "tokens": whole[:, :-1] * segments,
            "targets": np.where(weights > 0, whole[:, 1:], 0),
            "segment_ids": segments,
            "positions": np.arange(self.seq_len, dtype=np.int32) * segments,
            "prefix": prefix,
            "weights": weights,
        }

    def counts(self) -> dict:
        before, answer = (np.array([len(text[n]) for text in self.texts]) for n in (0, 1))
        return {
            "pictures": len(self),
            "distinct answers": len({record["answer"] for record in self.records}),
            "pixels a side": self.images.shape[-2],
            "tokens before an answer, mean": float(before.mean()),
            "tokens of an answer, mean": float(answer.mean()),
            "tokens of a row, most": int((before + answer).max() - 1),
            "skipped records": self.skipped,
        }


@dataclasses.dataclass(frozen=True)
class ImagePrompts:
    """One split as prompts: their tokens, their records, and the image that the model reads."""

    rows: AnswerRows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def prompts(self) -> list[list[int]]:
        return [before for before, _ in self.rows.texts]

    @property
    def records(self) -> list[dict[str, Any]]:
        return self.rows.records

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        return self.rows.batch(indices, noise)

    def counts(self) -> dict:
        return self.rows.counts()

    def inputs(self, index: int) -> dict[str, np.ndarray]:
        """Return the image of a prompt as a batch of one row."""
        return {"image": self.rows.floats(self.rows.images[self.rows.places[index]][None])}

    def picture(self, index: int) -> str:
        """Return a prompt's whole image as a PNG data URL. With tiles it is the last square."""
        image, record = self.rows.images[self.rows.places[index]], self.records[index]
        image = image[record["squares"] - 1] if image.ndim == 4 else image
        return "data:image/png;base64," + base64.b64encode(pictures.encode(image)).decode()
