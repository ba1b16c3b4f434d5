"""Log-mel spectrograms as Whisper reads them: windows of one length, loudness relative to the loudest of the window.

As WhisperFeatureExtractor of transformers: a Hann window of 25 ms every 10 ms, mirrored at both ends, power in bins of mel,
log10, no more than 8 below the largest value, then (x + 4) / 4.

Shapes: N samples, M frames, F bins.
"""

import functools

import numpy as np

from bigmodel_jax.data.audio.spectrogram import HOP, RATE, filters

FFT = 400
SECONDS = 30.0
FLOOR, RANGE = 1e-10, 8.0


def log_mel(samples_N: np.ndarray, num_mels: int, num_frames: int = round(SECONDS * RATE) // HOP) -> np.ndarray:
    """(M, F) float32 of samples in -1 .. 1 at 16 kHz: what is missing of `num_frames` is silence, what is more is cut off."""
    num = num_frames * HOP
    x = np.zeros(num, np.float32)
    x[: min(num, len(samples_N))] = samples_N[:num]
    x = np.pad(x, FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(x, FFT)[::HOP][:num_frames]
    power = np.square(np.abs(np.fft.rfft(frames * window(), axis=-1)))
    bins = np.log10(np.maximum(power @ filters(num_mels, FFT).T.astype(np.float64), FLOOR))
    bins = np.maximum(bins, bins.max() - RANGE)
    return ((bins + 4.0) / 4.0).astype(np.float32)


@functools.cache
def window() -> np.ndarray:
    """Periodic, as torch.hann_window."""
    return np.hanning(FFT + 1)[:-1]
