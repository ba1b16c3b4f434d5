"""What a general-purpose compressor reaches on a text: the line that a language model has to beat."""

import itertools
import lzma
from collections.abc import Iterable

PRESET = 9 | lzma.PRESET_EXTREME
# Bytes that are compressed, about a second per MiB; of a longer text an even sample of the first READ bytes.
TRAIN, VALIDATION = 1 << 22, 1 << 20
READ = 1 << 26


def xz_bits_per_byte(train: bytes, validation: bytes) -> tuple[float, float]:
    """Bits per byte of `validation` under `xz -9e`: (alone, primed).

    primed: what `validation` adds to the compressed size of `train`, whose phrases it may refer to.
    """
    alone, before, both = (_compressed(text) for text in (validation, train, train + validation))
    return 8 * alone / len(validation), 8 * (both - before) / len(validation)


def _compressed(text: bytes) -> int:
    """Bytes under `xz -9e`. A window no longer than the text gives the same size as 64 MiB, with a tenth of the memory."""
    window = max(1 << 12, 1 << (len(text) - 1).bit_length())
    return len(lzma.compress(text, filters=[{"id": lzma.FILTER_LZMA2, "preset": PRESET, "dict_size": window}]))


def sample(documents: Iterable[str], most: int) -> bytes:
    """The documents with an empty line between them; of more than `most` bytes every n-th of those read, cut to `most`."""
    found, size = [], 0
    for document in documents:
        found.append(document.encode())
        size += len(found[-1]) + 2
        if size >= READ:
            break
    return b"\n\n".join(itertools.islice(found, 0, None, -(-size // (most + 2))))[:most]
