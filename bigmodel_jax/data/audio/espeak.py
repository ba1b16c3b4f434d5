"""Synthetic speech from eSpeak NG, a formant synthesizer with many voices and variants.

The library and its voice data come from the PyPI package espeakng-loader, which is downloaded as a
data archive (data/package_archives.py). On machines other than x86-64 Linux the system's own
library is used, such as Debian's libespeak-ng1. The library runs in a process of its own
(espeak_worker.py), because it keeps state between utterances and is not thread-safe.
"""

import ctypes.util
import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bigmodel_jax.data.package_archives import Package, unpacked

PACKAGE = Package(
    "espeakng-loader==0.2.4",
    "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d",
    "espeakng_loader/",
    "GPL-3.0-or-later",
)
VERSION = "espeak-ng 1.52"
RATE = 22_050  # sample rate of the library's output, in Hz
PACKAGED = ("Linux", "x86_64")  # the platform of the library in the pinned archive


class Utterance(NamedTuple):
    """One text to be spoken, and how it is spoken.

    - text: the words.
    - voice: a language and a variant, such as "en-us+f3".
    - speed: words per minute.
    - pitch: 0 to 99.
    - seed: seeds the library's noise, so that the same utterance always has the same samples.
    """

    text: str
    voice: str
    speed: int = 175
    pitch: int = 50
    seed: int = 0


def library() -> tuple[str, str]:
    """Return (path of the library, folder of its data). The folder is "" for a system library.

    Raises a one-line ValueError where no library is found.
    """
    machine = platform.system(), platform.machine()
    if machine == PACKAGED:
        folder = unpacked(PACKAGE)
        return str(folder / "libespeak-ng.so"), str(folder)
    found = ctypes.util.find_library("espeak-ng")
    if found is None:
        raise ValueError(
            f"voices of espeak-ng: {PACKAGE.requirement} holds a library for {' '.join(PACKAGED)}, and this machine is "
            f"{' '.join(machine)} without a library of its own; install one by apt-get install libespeak-ng1, or by "
            "brew install espeak-ng"
        )
    return found, ""


def spoken(utterances: Sequence[Utterance]) -> Iterator[np.ndarray]:
    """Yield the samples of each utterance: (n,) int16 at `RATE` Hz.

    Raises ValueError where a voice is unknown or the library's process ends early.
    """
    # -P keeps the worker's folder off its module path, so no file there can shadow a module.
    command = [sys.executable, "-P", str(Path(__file__).with_name("espeak_worker.py")), *library()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as worker:
        try:
            for utterance in utterances:
                worker.stdin.write(json.dumps(utterance._asdict()).encode() + b"\n")
                worker.stdin.flush()
                # The worker answers with an 8-byte length, and -1 stands for a failure.
                head = worker.stdout.read(8)
                size = int.from_bytes(head, "little", signed=True) if len(head) == 8 else -1
                if size < 0:
                    raise ValueError(f"espeak-ng cannot say {utterance.text!r} as {utterance.voice!r}")
                yield np.frombuffer(worker.stdout.read(size), np.int16)
        finally:
            worker.kill()
