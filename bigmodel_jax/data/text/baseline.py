"""The compression that xz reaches on a text, as a baseline for language models."""

import itertools
import lzma
from collections.abc import Iterable

PRESET = 9 | lzma.PRESET_EXTREME
# Bytes that are compressed, at about a second per MiB. A longer text is sampled evenly from its
# first READ bytes.
TRAIN, VALIDATION = 1 << 22, 1 << 20
READ = 1 << 26


def xz_bits_per_byte(train: bytes, validation: bytes) -> tuple[float, float]:
    """Return the bits per byte of `validation` under `xz -9e`: (alone, primed).

    "primed" is the growth of the compressed size when `validation` is appended to `train`.
    """
    alone, before, both = (_compressed(text) for text in (validation, train, train + validation))
    return 8 * alone / len(validation), 8 * (both - before) / len(validation)


def _compressed(text: bytes) -> int:
    """Return the compressed size under `xz -9e`.

    The window is no longer than the text. That gives the same size as a window of 64 MiB, with a
    tenth of the memory.
    """
    window = max(1 << 12, 1 << (len(text) - 1).bit_length())
    return len(lzma.compress(text, filters=[{"id": lzma.FILTER_LZMA2, "preset": PRESET, "dict_size": window}]))


def sample(documents: Iterable[str], most: int) -> bytes:
    """Join documents with an empty line between them, up to `most` bytes.

    If the text is longer, every n-th document is taken.
    """
    found, size = [], 0
    for document in documents:
        found.append(document.encode())
        size += len(found[-1]) + 2
        if size >= READ:
            break
    return b"\n\n".join(itertools.islice(found, 0, None, -(-size // (most + 2))))[:most]
