"""A subprocess that speaks one utterance per input line: python espeak_worker.py LIBRARY DATA.

An input line is a JSON object with text, voice, speed, pitch and seed. The answer is the length in
bytes (8 bytes, little-endian; -1 for a failure), followed by int16 samples. This file imports
nothing of the package.
"""

import ctypes
import json
import os
import sys

SYNCHRONOUS, FROM_CHARACTER, UTF8 = 2, 1, 1  # constants of speak_lib.h
RATE, PITCH = 1, 3
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def opened(library: str, data: str) -> ctypes.CDLL:
    """Load the library and initialize it with the folder of its data ("" for the default)."""
    speech = ctypes.CDLL(library)
    speech.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    speech.espeak_Info.restype = ctypes.c_char_p
    if speech.espeak_Initialize(SYNCHRONOUS, 0, data.encode() or None, 0) < 0:
        sys.exit("espeak-ng finds no data")
    return speech


def has_variant(speech: ctypes.CDLL, voice: str) -> bool:
    """Tell whether the voice data hold the variant after the "+".

    The library itself silently ignores a variant that it does not know.
    """
    variant, data = voice.partition("+")[2], ctypes.c_char_p()
    speech.espeak_Info(ctypes.byref(data))
    return not variant or os.path.isfile(os.path.join(data.value.decode(), "voices", "!v", variant))


def say(speech: ctypes.CDLL, asked: dict) -> bytes:
    """Return int16 samples as bytes; b"" where the voice is unknown."""
    pieces = []

    def keep(samples, count, _events) -> int:
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    # A variable holds the callback, because ctypes frees a callback that nothing refers to.
    callback = CALLBACK(keep)
    speech.espeak_SetSynthCallback(callback)
    speech.espeak_ng_SetRandSeed(asked["seed"])
    if not has_variant(speech, asked["voice"]) or speech.espeak_SetVoiceByName(asked["voice"].encode()) != 0:
        return b""
    speech.espeak_SetParameter(RATE, asked["speed"], 0)
    speech.espeak_SetParameter(PITCH, asked["pitch"], 0)
    text = asked["text"].encode() + b"\0"
    speech.espeak_Synth(text, len(text), 0, FROM_CHARACTER, 0, UTF8, None, None)
    return b"".join(pieces)


def main() -> None:
    """Answer every line of standard input on standard output."""
    speech = opened(*sys.argv[1:3])
    out = sys.stdout.buffer
    for line in sys.stdin:
        out.flush()
        # Each utterance is spoken by a fork of this process. The library's filters and wave tables
        # keep their state, so one utterance would otherwise change the samples of the next.
        child = os.fork()
        if child == 0:
            samples = say(speech, json.loads(line))
            out.write((len(samples) or -1).to_bytes(8, "little", signed=True) + samples)
            out.flush()
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
