"""Voices of eSpeak NG: texts spoken by formant synthesis, in any of its voices and variants.

The library and its data lie in the package espeakng-loader, which is fetched as data (data/package_archives.py). On other
machines than x86-64 Linux, the library of the system is used: Debian's package libespeak-ng1. It runs in a process of its
own (espeak_worker.py), since it keeps state from utterance to utterance and is not meant for threads.
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
RATE = 22_050  # samples a second that it gives
PACKAGED = ("Linux", "x86_64")


class Utterance(NamedTuple):
    """text, in a voice ("en-us+f3": a language and a variant), at a speed in words a minute and a pitch of 0 to 99.

    seed: of the library's own noise, so that the same utterance has the same samples."""

    text: str
    voice: str
    speed: int = 175
    pitch: int = 50
    seed: int = 0


def library() -> tuple[str, str]:
    """(path of the library, folder of its data, "" for its own); ValueError, one line, where there is none."""
    if (platform.system(), platform.machine()) == PACKAGED:
        folder = unpacked(PACKAGE)
        return str(folder / "libespeak-ng.so"), str(folder)
    found = ctypes.util.find_library("espeak-ng")
    if found is None:
        raise ValueError(
            f"voices of espeak-ng: {PACKAGE.requirement} has no library for {platform.system()} {platform.machine()}, and "
            "the system has none; apt-get install libespeak-ng1, or brew install espeak-ng, brings one"
        )
    return found, ""


def spoken(utterances: Sequence[Utterance]) -> Iterator[np.ndarray]:
    """Samples (n,) int16 at `RATE` of each utterance; ValueError where a voice is unknown or the library ends early."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("espeak_worker.py")), *library()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as worker:
        try:
            for utterance in utterances:
                worker.stdin.write(json.dumps(utterance._asdict()).encode() + b"\n")
                worker.stdin.flush()
                head = worker.stdout.read(8)
                size = int.from_bytes(head, "little", signed=True) if len(head) == 8 else -1
                if size < 0:
                    raise ValueError(f"espeak-ng cannot say {utterance.text!r} as {utterance.voice!r}")
                yield np.frombuffer(worker.stdout.read(size), np.int16)
        finally:
            worker.kill()
