"""What a general-purpose compressor reaches on a text: the line that a language model has to beat."""

import lzma

PRESET = 9 | lzma.PRESET_EXTREME
WINDOW = 1 << 26  # bytes that xz -9 looks back; what lies before cannot help


def xz_bits_per_byte(train: bytes, validation: bytes) -> tuple[float, float]:
    """Bits per byte of `validation` under `xz -9e`: (alone, primed).

    primed: what `validation` adds to the compressed size of `train`, whose phrases it may refer to.
    """
    train = train[-WINDOW:]
    alone, before, both = (len(lzma.compress(b, preset=PRESET)) for b in (validation, train, train + validation))
    return 8 * alone / len(validation), 8 * (both - before) / len(validation)
