"""Recordings with transcripts for an encoder-decoder such as Whisper.

The encoder reads a spectrogram, and the decoder reads and predicts these tokens:

  decoder   start ... , text
  targets   -     ... , text, end
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigmodel_jax.core import ranges
from bigmodel_jax.core.ranges import Count, Positive
from bigmodel_jax.data import cache
from bigmodel_jax.data.audio import transcript_start, windows
from bigmodel_jax.data.audio.spectrogram import HOP, RATE
from bigmodel_jax.data.audio.spoken_words import SpokenWords
from bigmodel_jax.data.base import BadRecords, DataConfig, lacks, log_skipped
from bigmodel_jax.data.columns import Column, part
from bigmodel_jax.data.fields import Field
from bigmodel_jax.data.sources.source import Source
from bigmodel_jax.data.text import packing
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, TokenizerConfig, load_tokenizer

FORMAT = 1  # raise it when the cached files change
LOUDEST = 32_767  # scale of the int16 samples in the cache


@dataclasses.dataclass(frozen=True)
class TranscriptData(DataConfig):
    """Recordings and their transcripts as tokens. A row is one recording, padded with silence.

    The source gives records {"audio" (n,) float32 at 16 kHz, "text"}. A batch holds log_mel (B, M,
    F) float32; tokens, targets, segment_ids and positions (B, T) int32; weights (B, T) float32,
    which are 0 on the start tokens and on padding. The tokenizer is read from a file, such as the
    tokenizer.json of an imported model.
    """

    required_by: ClassVar = {
        "num_mels": "num_mels",
        "vocab_size": "tokenizer",
        "max_seq_len": "seq_len",
        "max_audio_len": "max_seconds",
        "decoder_start_token_id": "tokenizer",
        "eos_token_id": "tokenizer",
    }
    exact: ClassVar = DataConfig.exact | {"num_mels"}
    compared: ClassVar = DataConfig.compared | {
        "tokenizer": "tokenizer",
        **dict.fromkeys(("num_mels", "language"), "prepares"),
        **dict.fromkeys(("max_seconds", "seq_len"), "shape"),
    }

    source: Source = SpokenWords()
    "where the recordings come from"
    tokenizer: TokenizerConfig = TokenizerConfig()
    "the tokenizer file of the model"
    num_mels: Count = 80
    "mel bins of the spectrogram"
    max_seconds: Positive = windows.SECONDS
    "length of every row in seconds, silence included; a longer recording is a bad record"
    seq_len: Count = 64
    "tokens of a row, start and end included; a longer transcript is a bad record"
    language: str = ""
    "the language's code, such as de; empty for a model of English alone"

    def __post_init__(self):
        ranges.check(self, "data.")
        if self.num_frames % 2:
            # The encoder halves the number of frames, so it must be even.
            raise ValueError(
                f"data.max_seconds = {self.max_seconds:g} gives {self.num_frames} frames; it must be a multiple of 0.02"
            )

    @property
    def num_frames(self) -> int:
        """The number of frames of every row."""
        return round(self.max_seconds * RATE) // HOP

    def open(self, split: str) -> "TranscriptRows":
        folder, tokenizer = prepared(self, split), self.open_tokenizer()
        ends = [np.load(folder / f"{name}_ends.npy") for name in ("audio", "text")]
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("audio", "text")]
        log_skipped(split, json.loads((folder / "meta.json").read_text())["bad_records"])
        return TranscriptRows(self, self._start(tokenizer), tokenizer.separator, *arrays, *ends)

    def row(self) -> dict[str, Field]:
        return {"log_mel": Field((self.num_frames, self.num_mels))} | packing.row(self.seq_len)

    def requirements(self) -> dict:
        tokenizer = self.open_tokenizer()
        return {
            "num_mels": self.num_mels,
            "vocab_size": tokenizer.vocab_size,
            "max_seq_len": self.seq_len,
            # The model's limit counts positions after the encoder has halved the frames.
            "max_audio_len": self.num_frames // 2,
            "decoder_start_token_id": self._start(tokenizer)[0],
            "eos_token_id": tokenizer.separator,
        }

    def open_tokenizer(self) -> Tokenizer:
        if not Path(self.tokenizer.path).is_file():
            raise ValueError(
                f"data.tokenizer.path = {self.tokenizer.path!r} is no file; give an imported run's tokenizer.json"
            )
        return load_tokenizer(self.tokenizer.path)

    def save_artifacts(self, folder: Path) -> None:
        self.open_tokenizer().save(folder / "tokenizer.json")

    def _start(self, tokenizer: Tokenizer) -> list[int]:
        return transcript_start.start(tokenizer, self.language)


@dataclasses.dataclass(frozen=True)
class TranscriptRows:
    """The rows of one split, stored one after another in flat arrays.

    - start, end: the start tokens, and the token that ends a transcript.
    - audio: the samples of all rows, int16.
    - text: the tokens of all rows, int32.
    - audio_ends, text_ends: where the samples and tokens of each row end, (N,) int64.
    """

    cfg: TranscriptData
    start: list[int]
    end: int
    audio: np.ndarray
    text: np.ndarray
    audio_ends: np.ndarray
    text_ends: np.ndarray

    def __len__(self) -> int:
        return len(self.audio_ends)

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        B, T = len(indices), self.cfg.seq_len
        out = {name: np.zeros((B, T), np.int32) for name in ("tokens", "targets", "segment_ids")}
        out["weights"] = np.zeros((B, T), np.float32)
        out["positions"] = np.tile(np.arange(T, dtype=np.int32), (B, 1))
        out["log_mel"] = np.empty((B, self.cfg.num_frames, self.cfg.num_mels), np.float32)
        for row, index in enumerate(indices.tolist()):
            samples, text = self.recording(index)
            whole = [*self.start, *text.tolist(), self.end]
            # The decoder's input is the sequence without its last token, and its targets are the
            # sequence without its first. Predictions inside the start tokens have weight 0.
            first, last = len(self.start) - 1, len(whole) - 1
            out["tokens"][row, :last], out["targets"][row, :last] = whole[:-1], whole[1:]
            out["segment_ids"][row, :last], out["weights"][row, first:last] = 1, 1.0
            out["log_mel"][row] = windows.log_mel(samples, self.cfg.num_mels, self.cfg.num_frames)
        return out

    def recording(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (samples (n,) float32, tokens (u,)) of one row."""
        audio = part(self.audio, self.audio_ends, index)
        return audio.astype(np.float32) / LOUDEST, part(self.text, self.text_ends, index)

    def counts(self) -> dict[str, Any]:
        seconds, tokens = np.diff(self.audio_ends, prepend=0) / RATE, np.diff(self.text_ends, prepend=0)
        return {
            "recordings": len(self),
            "seconds, mean": float(seconds.mean()),
            "seconds, longest": float(seconds.max()),
            "tokens, mean": float(tokens.mean()),
            "empty transcripts": int((tokens == 0).sum()),
        }


def prepared(cfg: TranscriptData, split: str) -> Path:
    """Return the cache folder of a split, and fill it where it does not exist yet."""
    facts = (cfg.tokenizer.reads(cfg.root()), cfg.max_seconds, cfg.seq_len, cfg.language, cfg.max_bad_records)
    name = cache.key(cfg.source.fingerprint(split, cfg.root()), facts, FORMAT)
    return cache.build(cfg.root() / f"transcripts-{FORMAT}" / name, lambda folder: _write(cfg, split, folder))


def _write(cfg: TranscriptData, split: str, folder: Path) -> None:
    bad, ends, tokenizer = BadRecords(cfg.max_bad_records), ([], []), cfg.open_tokenizer()
    # The end token is only a target, so it needs no room in the row.
    room = cfg.seq_len - len(transcript_start.start(tokenizer, cfg.language))
    with Column(folder / "audio.npy", np.int16) as audio, Column(folder / "text.npy", np.int32) as texts:
        # Empty chunks fix the shapes and types, even where no record follows.
        audio.extend(np.zeros(0, np.int16))
        texts.extend(np.zeros(0, np.int32))
        for where, record in cfg.source.records(split, cfg.root(), bad):
            if reason := wrong(cfg, record):
                bad.skip(where, reason)
                continue
            # Whisper's texts begin with a space.
            ids = tokenizer.encode(f" {record['text'].strip()}") if record["text"].strip() else []
            if len(ids) > room:
                bad.skip(where, f"{len(ids)} tokens; data.seq_len = {cfg.seq_len} has room for {room}")
                continue
            # int16 halves the cache, and most recordings have 16 bits.
            audio.extend(np.round(np.clip(record["audio"], -1, 1) * LOUDEST).astype(np.int16))
            texts.extend(np.asarray(ids, np.int32))
            ends[0].append(audio.rows)
            ends[1].append(texts.rows)
    if not ends[0]:
        raise ValueError(f"data.source: the {split} split of {cfg.source.short_name()} has no usable recordings")
    for name, values in zip(("audio", "text"), ends, strict=True):
        np.save(folder / f"{name}_ends.npy", np.asarray(values, np.int64))
    (folder / "meta.json").write_text(json.dumps({"bad_records": bad.skipped}))


def wrong(cfg: TranscriptData, record: dict[str, Any]) -> str:
    """Return what is wrong with a record; "" where nothing is."""
    if missing := lacks(record, "audio", "text"):
        return missing
    seconds = len(record["audio"]) / RATE
    if seconds > cfg.max_seconds:
        return f"{seconds:.1f} s of audio; data.max_seconds = {cfg.max_seconds:g} allows no more"
    return "" if len(record["audio"]) >= HOP else "less than 10 ms of audio"
