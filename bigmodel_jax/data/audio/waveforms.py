"""WAV files as samples of one channel at one rate. Conversions are logged."""

import functools
import logging
import struct
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

SUFFIXES = (".wav", ".wave")
LEAST_RATE, MOST_RATE = 4_000, 384_000  # Hz


def read(path: Path, rate: int) -> tuple[np.ndarray, str]:
    """Return (samples (n,) float32 in -1 .. 1 at `rate` Hz, what was converted or "").

    Raises ValueError, without the path, where the file is truncated, is not WAV or holds values
    that are not finite.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"a {path.suffix or 'file without an ending'} is not a WAV file; ffmpeg -i FILE FILE.wav makes one"
        )
    own, samples = _decoded(path)
    if not LEAST_RATE <= own <= MOST_RATE:
        raise ValueError(f"it has {own} samples a second; allowed: {LEAST_RATE} to {MOST_RATE}")
    said = []
    if samples.ndim > 1:
        said.append(f"the mean of {samples.shape[1]} channels")
        samples = samples.mean(axis=1)
    if not np.isfinite(samples).all():
        raise ValueError("it has samples that are not finite")
    if own != rate:
        said.append(f"{own} to {rate} Hz")
        samples = resampled(samples, own, rate)
    return samples.astype(np.float32), ", ".join(said)


def _decoded(path: Path) -> tuple[int, np.ndarray]:
    """Return (sample rate, (n,) or (n, channels) float32) of 8 to 32 bits or floats."""
    from scipy.io import wavfile  # not at the top: importing SciPy takes as long as importing JAX

    # SciPy only warns about a truncated file, and returns the samples that are there.
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", wavfile.WavFileWarning)
        try:
            rate, samples = wavfile.read(path)
        except (ValueError, struct.error, EOFError, OSError) as error:
            raise ValueError(f"it is not a WAV file that can be read: {' '.join(str(error).split())}") from None
    if cut := next((str(one.message) for one in said if "prematurely" in str(one.message)), ""):
        raise ValueError(f"truncated: {cut.partition('; ')[2].rstrip('.') or cut}")
    # 8-bit WAV samples are unsigned, with 128 as zero. Wider samples are signed.
    if samples.dtype == np.uint8:
        return rate, (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":  # 24-bit samples come as the upper bits of 32
        # The divisor is 2**15 or 2**31, so the most negative sample becomes exactly -1.
        return rate, samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    return rate, samples.astype(np.float32)


def resampled(samples_N: np.ndarray, own: int, rate: int) -> np.ndarray:
    """Return the samples at another rate, after a low-pass filter against aliasing."""
    from scipy.signal import resample_poly  # not at the top, for the same reason

    ratio = Fraction(rate, own)
    return resample_poly(samples_N.astype(np.float32), ratio.numerator, ratio.denominator)


@functools.cache
def say_once(said: str) -> None:
    """Log each kind of conversion once, however many files need it."""
    log.warning("audio is converted: %s", said)
