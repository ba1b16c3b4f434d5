"""SpecAugment masks frequency bands and time spans of training spectrograms (arXiv:1904.08779)."""

import dataclasses

import numpy as np

from bigmodel_jax.core.ranges import CountOrZero, Share
from bigmodel_jax.data.images.draws import Draws


@dataclasses.dataclass(frozen=True)
class SpecAugment:
    """Settings of the masks; calling the object masks one spectrogram.

    A masked value becomes 0, which is the mean of every bin. Time warping is left out, because the
    paper names it as the first part to drop. The masks of an example follow from 64 random bits,
    which come from (seed, number of the example), so a resumed run draws the same masks.
    """

    freq_masks: CountOrZero = 2
    "frequency masks per spectrogram"
    freq_width: CountOrZero = 27
    "the largest width of a frequency mask, in mel bins"
    time_masks: CountOrZero = 2
    "time masks per spectrogram"
    time_width: CountOrZero = 40
    "the largest width of a time mask, in frames"
    time_share: Share = 0.2
    "the largest width of a time mask, as a share of the utterance's own frames"

    def __call__(self, spectrogram_TF: np.ndarray, num_frames: int, noise: int) -> None:
        """Mask the first `num_frames` frames of a spectrogram in place. `noise` is the seed."""
        draws, bins = Draws(noise), spectrogram_TF.shape[1]
        for _ in range(self.freq_masks):
            width = draws.below(min(self.freq_width, bins) + 1)
            start = draws.below(bins - width + 1)
            spectrogram_TF[:num_frames, start : start + width] = 0
        # A short utterance gets narrower masks, so that a mask cannot hide most of it.
        most = min(self.time_width, int(self.time_share * num_frames))
        for _ in range(self.time_masks):
            width = draws.below(most + 1)
            start = draws.below(num_frames - width + 1)
            spectrogram_TF[start : start + width] = 0
