"""SpecAugment: bands of frequency and stretches of time of a training spectrogram become zeros (arXiv:1904.08779)."""

import dataclasses

import numpy as np

from bigmodel_jax.core.ranges import CountOrZero, Share
from bigmodel_jax.data.images.draws import Draws


@dataclasses.dataclass(frozen=True)
class SpecAugment:
    """Time warping is left out, as the paper's own results allow. Bins have mean 0, so a zero says nothing.

    The masks of an example are a function of 64 bits that come from (seed, number of the example): a resumed run draws the
    same ones.
    """

    freq_masks: CountOrZero = 2
    freq_width: CountOrZero = 27
    "bins that one mask covers at most"
    time_masks: CountOrZero = 2
    time_width: CountOrZero = 40
    "frames that one mask covers at most"
    time_share: Share = 0.2
    "share of an utterance's own frames that one mask covers at most"

    def __call__(self, spectrogram_TF: np.ndarray, num_frames: int, noise: int) -> None:
        """Masks the first `num_frames` frames in place."""
        draws, bins = Draws(noise), spectrogram_TF.shape[1]
        for _ in range(self.freq_masks):
            width = draws.below(min(self.freq_width, bins) + 1)
            start = draws.below(bins - width + 1)
            spectrogram_TF[:num_frames, start : start + width] = 0
        most = min(self.time_width, int(self.time_share * num_frames))
        for _ in range(self.time_masks):
            width = draws.below(most + 1)
            start = draws.below(num_frames - width + 1)
            spectrogram_TF[start : start + width] = 0
