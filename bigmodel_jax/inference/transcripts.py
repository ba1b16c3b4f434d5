"""Reads the recordings that `transcribe` gets, runs a model on them, and computes the word error
rate."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigmodel_jax.config import Config
from bigmodel_jax.core import params
from bigmodel_jax.data.audio import waveforms
from bigmodel_jax.data.audio.spectrogram import HOP, RATE
from bigmodel_jax.data.audio.speech_files import rows_of
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer
from bigmodel_jax.inference.hearing import hear
from bigmodel_jax.inference.transcribe import Segment, Transcriber
from bigmodel_jax.metrics import texts

MANIFESTS = (".jsonl", ".csv", ".tsv")
MARKS = re.compile(r"[^\w\s']")


class Recording(NamedTuple):
    """A recording; samples: (n,) float32 at 16 kHz; text: the reference, None if unknown."""

    path: Path
    samples: np.ndarray
    text: str | None = None

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


class Asked(NamedTuple):
    """The verb's options; language, task: as in `transcript_start.start`; times: split at time
    tokens."""

    language: str = ""
    task: str = "transcribe"
    times: bool = True


Listen = Callable[[np.ndarray], Iterator[tuple[float, list[Segment]]]]


def recordings(paths: Sequence[Path]) -> list[Recording]:
    """Reads recordings from audio files and from the lines of manifests.

    Raises a one-line ValueError for a recording that cannot be read.
    """
    found = []
    for path in paths:
        if not path.is_file():
            raise ValueError(f"transcribe: no such file: {path}")
        found += _of_manifest(path) if path.suffix in MANIFESTS else [_read(path, str(path))]
    return found


def _of_manifest(manifest: Path) -> Iterator[Recording]:
    for where, row, reason in rows_of(manifest, "manifest"):
        lacking = not isinstance(row, dict) or not isinstance(row.get("audio"), str)
        if reason or lacking:
            raise ValueError(f"transcribe: {where}: {reason or 'no text in field audio'}")
        text = row.get("text")
        yield _read(manifest.parent / row["audio"], where, text if isinstance(text, str) else None)


def _read(path: Path, where: str, text: str | None = None) -> Recording:
    try:
        samples, said = waveforms.read(path, RATE)
    except (ValueError, OSError) as error:
        raise ValueError(f"transcribe: {where}: {error}") from None
    # The spectrogram of a shorter recording has no frame.
    if len(samples) < HOP:
        raise ValueError(
            f"transcribe: {where}: it has {len(samples)} samples; it must have {HOP} or more, one frame of the spectrogram"
        )
    if said:
        waveforms.say_once(said)
    return Recording(path, samples, text)


def check_metric(found: Sequence[Recording]) -> None:
    """Raises ValueError if a reference is known and the package for the word error rate is
    missing."""
    if any(one.text is not None for one in found):
        texts.check_package("transcribe: the word error rate", *texts.TEXT_METRICS["wer"].package)


def listener(config: Config, weights: params.Tree, tokenizer: Tokenizer | None, asked: Asked) -> Listen:
    """The function that transcribes with the run. Raises ValueError if its model reads no
    recordings.
    """
    # A Whisper-like model reads a spectrogram and text tokens.
    if set(config.model.inputs()) == {"log_mel", "tokens"} and tokenizer is not None:
        how = asked._asdict()
        return Transcriber(config.model, config.make_model(), weights, tokenizer, **how).segments
    if "speech" in config.objective.endings:
        if asked != Asked(times=asked.times):
            raise ValueError("--language and --task: a model of characters has no languages or tasks")
        return lambda samples: _by_characters(config, weights, samples)
    raise ValueError(
        f"transcribe: a {type(config.model).__name__} reads {', '.join(config.model.inputs())}, and no recordings; "
        "import whisper-tiny-en makes a run that does"
    )


def _by_characters(config: Config, weights: Any, samples: np.ndarray) -> Iterator[tuple[float, list[Segment]]]:
    """The words of a CTC model, each as a segment."""
    words = hear(config, weights, samples)[1]
    yield len(samples) / RATE, [Segment(word.start, word.end, word.text) for word in words]


def plain(text: str) -> str:
    """The text in lower case and without punctuation, as word errors are counted."""
    # A curly apostrophe is made straight, because MARKS keeps only straight ones inside words.
    return " ".join(MARKS.sub(" ", text.lower().replace("’", "'")).split())


def word_error(found: Sequence[tuple[Recording, list[Segment]]]) -> str:
    """A line with the word error rate over recordings with a reference; "" if there are none."""
    known = [(one.text, " ".join(s.text for s in segments)) for one, segments in found if one.text is not None]
    if not known:
        return ""
    metric = texts.TEXT_METRICS["wer"]
    rate = metric([plain(heard) for _, heard in known], [[plain(said)] for said, _ in known])["wer"]
    return f"word error rate: {rate:.2%} of {len(known)} recordings, in lower case and without punctuation"
