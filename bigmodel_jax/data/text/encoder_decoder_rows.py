"""Rows of encoder-decoder models: the encoder's input, the decoder's input, and the targets."""

import numpy as np

from bigmodel_jax.data.fields import Field, per_token
from bigmodel_jax.data.text import packing


def row(encoder_len: int, decoder_len: int) -> dict[str, Field]:
    """Return the arrays of `empty`, and in evaluation the bytes of each target."""
    encoder = per_token(["encoder_tokens", "encoder_segment_ids"], encoder_len)
    return encoder | packing.row(decoder_len) | per_token(["target_bytes"], decoder_len, evaluation=True)


def empty(num_rows: int, encoder_len: int, decoder_len: int) -> dict[str, np.ndarray]:
    """Return a batch of padding: arrays (num_rows, encoder_len) and (num_rows, decoder_len)."""

    def zeros(width: int, dtype: type = np.int32) -> np.ndarray:
        return np.zeros((num_rows, width), dtype)

    return {
        "encoder_tokens": zeros(encoder_len),
        "encoder_segment_ids": zeros(encoder_len),
        "tokens": zeros(decoder_len),
        "targets": zeros(decoder_len),
        "weights": zeros(decoder_len, np.float32),
        "segment_ids": zeros(decoder_len),
        "positions": np.tile(np.arange(decoder_len, dtype=np.int32), (num_rows, 1)),
    }


def fill(out: dict[str, np.ndarray], row: int, source: np.ndarray, target: np.ndarray, start: int) -> None:
    """Write one pair into a batch of `empty`.

    `source` and `target` end with their end tokens. `start` begins the decoder's input.
    """
    out["encoder_tokens"][row, : len(source)] = source
    out["encoder_segment_ids"][row, : len(source)] = 1
    n = len(target)
    # The decoder reads the target before the one that it predicts, so the end token is no input.
    out["tokens"][row, :n] = np.append(start, target[:-1])
    out["targets"][row, :n], out["weights"][row, :n], out["segment_ids"][row, :n] = target, 1.0, 1
