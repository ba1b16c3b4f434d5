"""Log-mel spectrograms as NVIDIA's Parakeet computes them.

Every mel bin of an utterance is normalized to mean 0 and standard deviation 1.

Shapes: N samples, T frames, F mel bins.
"""

import functools

import numpy as np

RATE, HOP, WINDOW, FFT = 16_000, 160, 400, 512  # Hz, then samples: a frame starts every 10 ms and is 25 ms long
PREEMPHASIS = 0.97  # coefficient of the pre-emphasis filter
LOG_GUARD, STD_GUARD = 2.0**-24, 1e-5  # added to the power before the logarithm, and to a bin's deviation


def num_frames(num_samples: int) -> int:
    """Return how many whole frames this many samples give."""
    return num_samples // HOP


def log_mel(samples_N: np.ndarray, num_mels: int) -> np.ndarray:
    """Return the spectrogram (T, F) float32 of samples in -1 .. 1 at 16 kHz. Silence is all 0."""
    x = np.asarray(samples_N, np.float32)
    T = num_frames(len(x))
    if T == 0:
        return np.zeros((0, num_mels), np.float32)
    # The pre-emphasis filter raises high frequencies. The padding centres frame t on sample t *
    # HOP.
    x = np.concatenate([x[:1], x[1:] - PREEMPHASIS * x[:-1]])
    x = np.pad(x, FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(x, FFT)[::HOP][:T]
    power = np.square(np.abs(np.fft.rfft(frames * window(), axis=-1))).astype(np.float32)
    # In float64 the mean of equal numbers is exactly that number. So digital silence gives zeros,
    # and the division below does not amplify rounding errors.
    bins = np.log(power @ filters(num_mels).T + LOG_GUARD).astype(np.float64)
    # ddof = 1, because torch's std divides by T - 1.
    spread = bins.std(axis=0, ddof=1) if T > 1 else np.zeros(num_mels)
    return ((bins - bins.mean(axis=0)) / (spread + STD_GUARD)).astype(np.float32)


@functools.cache
def window() -> np.ndarray:
    """Return a 25 ms Hann window, padded on both sides to the length of the Fourier transform."""
    side = (FFT - WINDOW) // 2
    return np.pad(np.hanning(WINDOW), side).astype(np.float32)


def to_mel(hertz: np.ndarray) -> np.ndarray:
    """Convert Hz to Slaney's mel scale, which is linear below 1 kHz and logarithmic above."""
    hertz = np.asarray(hertz, np.float64)
    above = 15 + np.log(np.maximum(hertz, 1000) / 1000) * 27 / np.log(6.4)
    return np.where(hertz < 1000, hertz * 3 / 200, above)


def to_hertz(mel: np.ndarray) -> np.ndarray:
    """Convert Slaney's mel scale to Hz: the inverse of `to_mel`."""
    mel = np.asarray(mel, np.float64)
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((np.maximum(mel, 15) - 15) * np.log(6.4) / 27))


@functools.cache
def filters(num_mels: int, fft: int = FFT) -> np.ndarray:
    """Return the mel filters (F, fft / 2 + 1) float32: triangles of area 1 over frequency."""
    edges = to_hertz(np.linspace(0.0, to_mel(RATE / 2), num_mels + 2))
    bins = np.linspace(0, RATE / 2, fft // 2 + 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * 2 / (high - low)).astype(np.float32)
