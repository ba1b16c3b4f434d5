"""Text for masked language modelling: some tokens of every row are hidden and predicted."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from bigmodel_jax.core.ranges import Share
from bigmodel_jax.data import shuffle
from bigmodel_jax.data.text.text import TextData, TextRows, tokenizer

MASKS = ("[MASK]", "<mask>")
"Names of the mask token in tokenizers."


@dataclasses.dataclass(frozen=True)
class MaskedTextData(TextData):
    """Documents as rows of tokens, some of which are hidden.

    The tokenizer's own mask token is used. A tokenizer without one gets the id after its last
    token, so the model's vocabulary is one larger.
    """

    compared: ClassVar = TextData.compared | {"mask_rate": "prepares"}

    mask_rate: Share = 0.15
    "share of the tokens that are predicted"

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 < self.mask_rate < 1.0:
            raise ValueError(f"data.mask_rate: {self.mask_rate}; it must be between 0 and 1")

    def open(self, split: str) -> "MaskedRows":
        rows = super().open(split)
        fields = {f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)}
        tok = tokenizer(self)
        return MaskedRows(**fields, vocab_size=tok.vocab_size, mask_token=mask_token(tok), mask_rate=self.mask_rate)

    def requirements(self) -> dict:
        tok = tokenizer(self)
        return super().requirements() | {"vocab_size": max(tok.vocab_size, mask_token(tok) + 1)}

    def baselines(self) -> dict[str, float]:
        return {}  # xz is no baseline here, because it reads in one direction


@dataclasses.dataclass(frozen=True)
class MaskedRows(TextRows):
    """The rows of `TextRows` with hidden tokens, which are random only in training."""

    vocab_size: int
    mask_token: int
    mask_rate: float

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        out = super().batch(indices, noise)
        noise = shuffle.noise(shuffle.start(0), np.asarray(indices)) if noise is None else noise
        # Separators and start tokens are never hidden.
        real = (out["segment_ids"] > 0) & ~np.isin(out["tokens"], (self.separator, self.start))
        targets = out["tokens"]
        out["tokens"], chosen = hide(targets, real, noise, self.mask_rate, self.mask_token, self.vocab_size)
        if "target_bytes" in out:
            # A hidden token is predicted at its own place, and not at the place before it.
            out["target_bytes"] = self.token_bytes[targets]
        return out | {"targets": targets, "weights": chosen.astype(np.float32)}


def mask_token(tok) -> int:
    """Return the id of the mask token."""
    ids = [tok.model.token_to_id(name) for name in MASKS]
    return next((i for i in ids if i is not None), tok.vocab_size)


def hide(
    tokens: np.ndarray, allowed: np.ndarray, noise: np.ndarray, rate: float, mask: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hide tokens, as `noise` (B,) uint64 decides. Return (tokens, whether each was chosen), both
    (B, T).

    Each allowed token is chosen with probability `rate`. 80 % of the chosen tokens become `mask`,
    10 % become a random token, and 10 % stay, so that the model cannot tell which tokens are wrong
    (Devlin et al., arXiv:1810.04805, section 3.1).
    """
    place = (np.arange(tokens.shape[1], dtype=np.uint64) + np.uint64(1)) * shuffle.GOLDEN
    bits = shuffle.mix(noise[:, None] + place[None])
    # The upper 32 bits choose the tokens, and the lower 32 bits what becomes of them.
    chosen = allowed & ((bits >> np.uint64(32)) < math.floor(rate * 2**32))
    kind = (bits & np.uint64(0xFFFFFFFF)).astype(np.float64) / 2**32
    random = (shuffle.mix(~bits) % np.uint64(vocab_size)).astype(tokens.dtype)
    hidden = np.where(kind < 0.8, np.asarray(mask, tokens.dtype), np.where(kind < 0.9, random, tokens))
    return np.where(chosen, hidden, tokens), chosen
