"""Recordings with transcripts for an encoder-decoder: what a row holds, and what is a bad
record."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.io import wavfile

from bigmodel_jax.data import TokenizerConfig
from bigmodel_jax.data.audio import windows
from bigmodel_jax.data.audio.speech_files import SpeechFiles
from bigmodel_jax.data.audio.transcript_data import TranscriptData
from bigmodel_jax.data.tokenizers.tokenizers import make_bytes

SAID = ("one two", "")


@pytest.fixture
def data(tmp_path):
    draw, lines = np.random.default_rng(0), []
    for n, text in enumerate(SAID):
        samples = (0.3 * draw.standard_normal(8_000 * (n + 1)) * 32_767).clip(-32_767, 32_767).astype(np.int16)
        wavfile.write(tmp_path / f"{n}.wav", 16_000, samples)
        lines.append(json.dumps({"audio": f"{n}.wav", "text": text}))
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    make_bytes().save(tmp_path / "tokenizer.json")
    tokenizer = TokenizerConfig(path=str(tmp_path / "tokenizer.json"))
    source = SpeechFiles(train=str(tmp_path / "train.jsonl"))
    cache = str(tmp_path / "cache")
    return TranscriptData(source=source, tokenizer=tokenizer, max_seconds=2.0, seq_len=16, num_mels=20, cache_dir=cache)


def test_a_row_is_a_spectrogram_and_the_tokens_behind_the_start(data):
    rows, tokenizer = data.open("train"), data.open_tokenizer()
    batch = rows.batch(np.arange(2), None)
    assert {name: x.shape[1:] for name, x in batch.items()} == {n: f.shape for n, f in data.row().items() if n in batch}
    text = tokenizer.encode(" one two")
    num = len(text) + 1
    assert batch["tokens"][0, :num].tolist() == [tokenizer.start, *text]
    assert batch["targets"][0, :num].tolist() == [*text, tokenizer.separator]
    assert batch["weights"].sum(1).tolist() == [num, 1]  # of silence, the end alone
    assert batch["segment_ids"].sum(1).tolist() == [num, 1]
    samples, _ = rows.recording(0)
    np.testing.assert_array_equal(batch["log_mel"][0], windows.log_mel(samples, 20, 200))
    assert rows.counts()["seconds, longest"] == 1.0


def test_what_does_not_fit_is_one_line_with_its_place(data):
    with pytest.raises(ValueError, match=r"train.jsonl line 1: 8 tokens; data.seq_len = 8 has room for 7"):
        dataclasses.replace(data, seq_len=8).open("train")
    with pytest.raises(ValueError, match=r"line 2: 1.0 s of audio; data.max_seconds = 0.5 allows no more"):
        dataclasses.replace(data, max_seconds=0.5).open("train")
    with pytest.raises(ValueError, match=r"data.max_seconds = 0.01 gives 1 frames"):
        dataclasses.replace(data, max_seconds=0.01)
    with pytest.raises(ValueError, match=r"^data\.max_seconds = inf; it must be a finite number$"):
        dataclasses.replace(data, max_seconds=float("inf"))
    with pytest.raises(ValueError, match=r"data.tokenizer.path = '' is no file"):
        dataclasses.replace(data, tokenizer=TokenizerConfig()).open("train")
