"""Log-mel spectrograms as Whisper computes them: windows of one fixed length.

The steps are those of WhisperFeatureExtractor in transformers: a 25 ms Hann window every 10 ms,
reflection at both ends, power in mel bins, log10, a floor 8 below the largest value, and (x + 4) /
4.

Shapes: N samples, M frames, F mel bins.
"""

import functools

import numpy as np

from bigmodel_jax.data.audio.spectrogram import HOP, RATE, filters

FFT = 400
SECONDS = 30.0  # length of Whisper's window in seconds
FLOOR, RANGE = 1e-10, 8.0  # powers below FLOOR are raised to it; log10(power) is raised to its maximum minus RANGE


def log_mel(samples_N: np.ndarray, num_mels: int, num_frames: int = round(SECONDS * RATE) // HOP) -> np.ndarray:
    """Return the spectrogram (M, F) float32 of samples in -1 .. 1 at 16 kHz.

    Shorter audio is padded with silence to `num_frames` frames, and longer audio is cut.
    """
    num = num_frames * HOP
    x = np.zeros(num, np.float32)
    x[: min(num, len(samples_N))] = samples_N[:num]
    x = np.pad(x, FFT // 2, mode="reflect")
    # The padded samples hold one frame more than `num_frames`. Whisper drops that last frame.
    frames = np.lib.stride_tricks.sliding_window_view(x, FFT)[::HOP][:num_frames]
    power = np.square(np.abs(np.fft.rfft(frames * window(), axis=-1)))
    bins = np.log10(np.maximum(power @ filters(num_mels, FFT).T.astype(np.float64), FLOOR))
    # Only the upper 80 dB of the window are kept.
    bins = np.maximum(bins, bins.max() - RANGE)
    return ((bins + 4.0) / 4.0).astype(np.float32)


@functools.cache
def window() -> np.ndarray:
    """Return a periodic Hann window, as torch.hann_window does."""
    return np.hanning(FFT + 1)[:-1]
