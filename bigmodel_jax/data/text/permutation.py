"""Text for permutation language modelling: tokens are predicted in a random order."""

import dataclasses
from typing import ClassVar

import numpy as np

from bigmodel_jax.core.ranges import ShareAboveZero
from bigmodel_jax.data import shuffle
from bigmodel_jax.data.fields import Field, per_token
from bigmodel_jax.data.text.text import TextData, TextRows


@dataclasses.dataclass(frozen=True)
class PermutedTextData(TextData):
    """Rows of tokens with an order of prediction (arXiv:1906.08237, sections 2.2 and 2.3)."""

    compared: ClassVar = TextData.compared | {"predict_rate": "prepares"}

    predict_rate: ShareAboveZero = 1 / 6
    """share of a row's tokens that are predicted: the last ones of the order, which have the most
    context"""

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 < self.predict_rate <= 1.0:
            raise ValueError(f"data.predict_rate: {self.predict_rate}; it must be above 0 and at most 1")

    def open(self, split: str) -> "PermutedRows":
        rows = super().open(split)
        fields = {f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)}
        return PermutedRows(**fields, num_places=self.num_places)

    @property
    def num_places(self) -> int:
        """The number of predicted tokens per row."""
        return max(1, round(self.seq_len * self.predict_rate))

    def row(self) -> dict[str, Field]:
        # Predicted places keep the order of the text, so a mesh axis can split them together with
        # it.
        predicted = per_token(["places", "targets"], self.num_places) | per_token(
            ["weights"], self.num_places, "float32"
        )
        return per_token(["tokens", "segment_ids", "positions", "order"], self.seq_len) | predicted

    def baselines(self) -> dict[str, float]:
        return {}  # xz is no baseline here, because it reads in one direction


@dataclasses.dataclass(frozen=True)
class PermutedRows(TextRows):
    """The rows of `TextRows` with an order of prediction, which is random only in training."""

    num_places: int

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        """Return the rows.

        tokens, segment_ids, positions and order (B, T) int32; places and targets (B, P) int32;
        weights (B, P) float32.
        """
        out = super().batch(indices, None)
        noise = shuffle.noise(shuffle.start(0), np.asarray(indices)) if noise is None else noise
        allowed = (out["segment_ids"] > 0) & ~np.isin(out["tokens"], (self.separator, self.start))
        order, places = permute(allowed, noise, self.num_places)
        batch = {name: out[name] for name in ("tokens", "segment_ids", "positions")}
        targets = np.take_along_axis(out["tokens"], places, axis=1)
        weights = np.take_along_axis(order, places, axis=1) > 0
        return batch | {"order": order, "places": places, "targets": targets, "weights": weights.astype(np.float32)}


def permute(allowed: np.ndarray, noise: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (order (B, T), places (B, num)) int32, as `noise` (B,) uint64 decides.

    `places` are `num` of the allowed places, in text order. Order 0 means that a token is given,
    and n that it is predicted n-th. A row with too few allowed places is filled with places of
    order 0.
    """
    column = (np.arange(allowed.shape[1], dtype=np.uint64) + np.uint64(1)) * shuffle.GOLDEN
    # Keys of allowed places use half of the range, so all other places sort after them.
    key = shuffle.mix(noise[:, None] + column[None]) >> np.uint64(1)
    # The smallest keys come first: they choose the predicted places and their order at once.
    turn = np.argsort(np.where(allowed, key, key | np.uint64(1 << 63)), axis=1)[:, :num]
    order = np.zeros(allowed.shape, np.int32)
    np.put_along_axis(order, turn, np.arange(1, num + 1, dtype=np.int32)[None], axis=1)
    return order * allowed, np.sort(turn, axis=1).astype(np.int32)
