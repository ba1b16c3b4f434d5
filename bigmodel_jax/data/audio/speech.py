"""Speech with transcripts as spectrograms and characters, prepared once into the cache."""

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.core.ranges import Count, Positive
from bigmodel_jax.data import cache
from bigmodel_jax.data.audio import spectrogram
from bigmodel_jax.data.audio.spec_augment import SpecAugment
from bigmodel_jax.data.audio.spoken_words import SpokenWords
from bigmodel_jax.data.base import BadRecords, DataConfig, lacks, log_skipped
from bigmodel_jax.data.columns import Column, part
from bigmodel_jax.data.fields import Field, per_row
from bigmodel_jax.data.sources.source import Source

FORMAT = 1  # raise it when the cached files change
BLANK, SPACE = 0, 1  # labels of CTC's blank and of the space
LETTERS = "abcdefghijklmnopqrstuvwxyz'"
PUNCTUATION = re.compile(r"[.,;:!?\"()-]")


@dataclasses.dataclass(frozen=True)
class SpeechData(DataConfig):
    """Recordings and their transcripts for CTC over characters.

    The source gives records {"audio" (n,) float32 at 16 kHz, "text"}. A batch holds

    - log_mel (B, T, F) float32, and num_frames (B,) int32: how many frames are not padding;
    - labels (B, U) int32, and num_labels (B,) int32: how many labels are not padding;
    - weights (B,) float32, all 1.

    Label 0 is CTC's blank, label 1 is the space, then come the `characters`. Transcripts are
    lower-cased and stripped of punctuation. An empty transcript means silence.
    """

    required_by: ClassVar = {"num_mels": "num_mels", "vocab_size": "characters", "subsampling": "subsampling"}
    exact: ClassVar = DataConfig.exact | {"num_mels", "subsampling"}
    compared: ClassVar = {
        **DataConfig.compared,
        "spec_augment": "training",
        **dict.fromkeys(("num_mels", "characters", "subsampling"), "prepares"),
        **dict.fromkeys(("max_seconds", "max_labels"), "shape"),
    }
    blank: ClassVar[int] = BLANK
    space: ClassVar[int] = SPACE

    source: Source = SpokenWords()
    "where the recordings come from"
    num_mels: Count = 80
    "mel bins of the spectrogram"
    max_seconds: Positive = 8.0
    "length of every row in seconds, padding included; a longer recording is a bad record"
    max_labels: Count = 64
    "the most characters of a transcript; a longer transcript is a bad record"
    characters: str = LETTERS
    "the alphabet of the transcripts, without the space"
    subsampling: Count = 4
    "how many frames the model merges into one; a transcript needs one merged frame per character"
    spec_augment: SpecAugment = SpecAugment()
    "masks of the training spectrograms"

    def __post_init__(self):
        if not self.characters or len(set(self.characters)) != len(self.characters) or " " in self.characters:
            raise ValueError(f"data.characters = {self.characters!r}; it must hold each character once, and no space")

    @property
    def max_frames(self) -> int:
        """The number of frames of every row, padding included."""
        return spectrogram.num_frames(round(self.max_seconds * spectrogram.RATE))

    @property
    def vocab_size(self) -> int:
        """The number of labels: the blank, the space and the characters."""
        return 2 + len(self.characters)

    def open(self, split: str) -> "SpeechRows":
        rows = SpeechRows(self, *load(prepared(self, split)))
        log_skipped(split, rows.meta["bad_records"])
        return rows

    def row(self) -> dict[str, Field]:
        arrays = {"log_mel": Field((self.max_frames, self.num_mels)), "labels": Field((self.max_labels,), "int32")}
        return arrays | per_row(["num_frames", "num_labels"]) | per_row(["weights"], "float32")

    def requirements(self) -> dict:
        return {"num_mels": self.num_mels, "vocab_size": self.vocab_size, "subsampling": self.subsampling}

    def save_artifacts(self, folder: Path) -> None:
        """Write vocabulary.json: the characters in the order of their labels."""
        text = json.dumps({"characters": ["<blank>", " ", *self.characters]}, ensure_ascii=False)
        files.replace(folder / "vocabulary.json", text + "\n")

    def labels(self, text: str) -> tuple[str, list[int]]:
        """Return ("", labels) of a transcript, or (what is wrong with it, [])."""
        plain = " ".join(PUNCTUATION.sub(" ", text.lower()).split())
        numbers = {" ": SPACE} | {c: n for n, c in enumerate(self.characters, 2)}
        unknown = next((c for c in plain if c not in numbers), None)
        if unknown is not None:
            return f"the transcript {text!r} holds {unknown!r}, which is not among data.characters", []
        return "", [numbers[c] for c in plain]

    def text(self, labels: np.ndarray) -> str:
        """Return the transcript of labels. Blanks and negative labels are dropped."""
        return "".join(" " if n == SPACE else self.characters[n - 2] for n in labels if n >= SPACE)


@dataclasses.dataclass(frozen=True)
class SpeechRows:
    """The rows of one split, stored one after another in flat arrays.

    - log_mel: the frames of all rows, (all frames, F) float16.
    - labels: the labels of all rows, int32.
    - frame_ends, label_ends: where the frames and labels of each row end, (N,) int64.
    - meta: the contents of meta.json, which lists the bad records.
    """

    cfg: SpeechData
    log_mel: np.ndarray
    frame_ends: np.ndarray
    labels: np.ndarray
    label_ends: np.ndarray
    meta: dict

    def __len__(self) -> int:
        return len(self.frame_ends)

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        B, cfg = len(indices), self.cfg
        out = {
            "log_mel": np.zeros((B, cfg.max_frames, cfg.num_mels), np.float32),
            "labels": np.zeros((B, cfg.max_labels), np.int32),
            "num_frames": np.empty(B, np.int32),
            "num_labels": np.empty(B, np.int32),
            "weights": np.ones(B, np.float32),
        }
        for row, index in enumerate(indices.tolist()):
            frames, labels = self.row(index)
            out["log_mel"][row, : len(frames)], out["labels"][row, : len(labels)] = frames, labels
            out["num_frames"][row], out["num_labels"][row] = len(frames), len(labels)
            # Only training rows have noise, so an evaluation sees whole spectrograms.
            if noise is not None:
                cfg.spec_augment(out["log_mel"][row], len(frames), int(noise[row]))
        return out

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (frames (T, F), labels (U,)) of one recording."""
        return part(self.log_mel, self.frame_ends, index), part(self.labels, self.label_ends, index)

    def counts(self) -> dict[str, Any]:
        frames, labels = (np.diff(ends, prepend=0) for ends in (self.frame_ends, self.label_ends))
        seconds = frames * spectrogram.HOP / spectrogram.RATE
        return {
            "recordings": len(self),
            "seconds, shortest": float(seconds.min()),
            "seconds, mean": float(seconds.mean()),
            "seconds, longest": float(seconds.max()),
            "characters, mean": float(labels.mean()),
            "empty transcripts": int((labels == 0).sum()),
            "skipped records": len(self.meta["bad_records"]),
        }


# ---------------------------------------------------------------- preparing


def prepared(cfg: SpeechData, split: str) -> Path:
    """Return the cache folder of a split, and fill it where it does not exist yet."""
    # `spec_augment` is no part of the key: it masks batches, and changes no cached file.
    facts = (cfg.num_mels, cfg.max_seconds, cfg.max_labels, cfg.characters, cfg.subsampling, cfg.max_bad_records)
    name = cache.key(cfg.source.fingerprint(split, cfg.root()), facts, FORMAT)
    return cache.build(cfg.root() / f"speech-{FORMAT}" / name, lambda folder: _write(cfg, split, folder))


def _write(cfg: SpeechData, split: str, folder: Path) -> None:
    bad, ends = BadRecords(cfg.max_bad_records), ([], [])
    # float16 halves the cache's size. A batch converts its frames to float32.
    with Column(folder / "log_mel.npy", np.float16) as frames, Column(folder / "labels.npy", np.int32) as labels:
        # An empty chunk fixes the shape and the type, even where no record follows.
        frames.extend(np.zeros((0, cfg.num_mels), np.float16))
        labels.extend(np.zeros(0, np.int32))
        for where, record in cfg.source.records(split, cfg.root(), bad):
            reason, (found, numbers) = example(cfg, record)
            if reason:
                bad.skip(where, reason)
                continue
            frames.extend(found)
            labels.extend(np.asarray(numbers, np.int32))
            ends[0].append(frames.rows)
            ends[1].append(labels.rows)
    if not ends[0]:
        raise ValueError(f"data.source: the {split} split of {cfg.source.short_name()} has no usable recordings")
    np.save(folder / "frame_ends.npy", np.asarray(ends[0], np.int64))
    np.save(folder / "label_ends.npy", np.asarray(ends[1], np.int64))
    (folder / "meta.json").write_text(json.dumps({"bad_records": bad.skipped}))


def example(cfg: SpeechData, record: dict[str, Any]) -> tuple[str, tuple[np.ndarray, list[int]]]:
    """Return ("", (frames, labels)) of a record, or (what is wrong with it, empty values)."""
    nothing = np.zeros((0, cfg.num_mels), np.float32), []
    if missing := lacks(record, "audio", "text"):
        return missing, nothing
    seconds = len(record["audio"]) / spectrogram.RATE
    if seconds > cfg.max_seconds:
        return f"{seconds:.1f} s of audio; data.max_seconds = {cfg.max_seconds:g} allows no more", nothing
    if spectrogram.num_frames(len(record["audio"])) == 0:
        return "less than 10 ms of audio", nothing
    reason, numbers = cfg.labels(record["text"])
    if reason:
        return reason, nothing
    frames = spectrogram.log_mel(record["audio"], cfg.num_mels)
    return _too_long(cfg, len(frames), numbers), (frames, numbers)


def _too_long(cfg: SpeechData, num_frames: int, labels: list[int]) -> str:
    """Return why a transcript does not fit its row or its merged frames; "" where it fits."""
    if len(labels) > cfg.max_labels:
        return f"{len(labels)} characters; data.max_labels = {cfg.max_labels} allows no more"
    needed = frames_needed(labels)
    has = -(-num_frames // cfg.subsampling)
    if needed > has:
        return (
            f"the transcript needs {needed} frames, and {num_frames} of 10 ms become {has} with data.subsampling = "
            f"{cfg.subsampling}"
        )
    return ""


def frames_needed(labels: list[int]) -> int:
    """Return the fewest frames with which CTC can emit the labels.

    CTC needs one frame per label, and a blank between two equal neighbours.
    """
    return len(labels) + sum(a == b for a, b in itertools.pairwise(labels))


def load(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
    """Return the fields of `SpeechRows` after `cfg`. The spectrograms are memory-mapped."""
    arrays = [np.load(folder / "log_mel.npy", mmap_mode="r")]
    arrays += [np.load(folder / f"{name}.npy") for name in ("frame_ends", "labels", "label_ends")]
    return *arrays, json.loads((folder / "meta.json").read_text())
