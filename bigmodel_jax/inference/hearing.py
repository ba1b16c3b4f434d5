"""Transcribes a recording with a CTC model: the likeliest labels, and the times of each word."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from bigmodel_jax.config import Config
from bigmodel_jax.core import params
from bigmodel_jax.core.precision import cast
from bigmodel_jax.data.audio import spectrogram
from bigmodel_jax.objectives import ctc_paths

PAD = 100  # frames; recordings are padded to whole seconds, to limit the number of compiled programs


class Word(NamedTuple):
    """A word with its start and end in seconds."""

    text: str
    start: float
    end: float


def hear(config: Config, weights: params.Tree, samples: np.ndarray, beams: int = 8) -> tuple[str, list[Word]]:
    """(text, words) of samples (n,) in [-1, 1] at 16 kHz.

    weights: as `saved.load_weights` returns them. beams: prefixes kept by the beam search. Raises
    ValueError for less than one frame of audio. Training has no recordings beyond
    `data.max_seconds`, so cut a longer recording at silences.
    """
    data, blank = config.data, config.objective.blank
    frames = spectrogram.log_mel(samples, data.num_mels)
    if not len(frames):
        raise ValueError(
            f"the audio has {len(samples)} samples; it must have {spectrogram.HOP} or more, one frame of the spectrogram"
        )
    # num_frames tells the model which frames are padding.
    padded = np.pad(frames, ((0, -len(frames) % PAD), (0, 0)))[None]
    out = _compiled(config.make_model().apply)(
        cast(weights, config.precision.compute), {"log_mel": padded, "num_frames": np.array([len(frames)], np.int32)}
    )
    logits, num = out["logits"], int(out["num_frames"][0])
    # The beam search runs on the host, so the log-probabilities are copied there.
    log_probs = np.asarray(jax.nn.log_softmax(logits[0, :num].astype("float32")))
    labels, _ = ctc_paths.best_prefix(log_probs, blank, beams)
    if not labels:
        return "", []
    aligned = ctc_paths.align(
        logits, out["num_frames"], np.array([labels], np.int32), np.array([len(labels)]), blank=blank
    )
    # `seconds` is the length of one output frame, because the model subsamples the spectrogram.
    second = len(frames) / num * spectrogram.HOP / spectrogram.RATE
    stretches = [(start * second, end * second) for _, start, end in ctc_paths.stretches(np.asarray(aligned.label[0]))]
    return data.text(labels), words(data, labels, stretches)


@functools.lru_cache(maxsize=4)
def _compiled(apply: Any) -> Any:
    return jax.jit(lambda weights, batch: apply(weights, batch).value)


def words(data: Any, labels: list[int], stretches: list[tuple[float, float]]) -> list[Word]:
    """Groups the labels between spaces into words, with the times of their first and last label."""
    found, letters = [], []
    for label, (start, end) in [*zip(labels, stretches, strict=True), (data.space, (0.0, 0.0))]:
        if label != data.space:
            letters.append((label, start, end))
        elif letters:
            found.append(Word(data.text([one[0] for one in letters]), letters[0][1], letters[-1][2]))
            letters = []
    return found
