"""Speech: recordings of any form, transcripts, spectrogram rows, SpecAugment, and voices of eSpeak
NG."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from scipy.io import wavfile

from bigmodel_jax.data import SpeechData, SpeechFiles, SpokenWords
from bigmodel_jax.data.audio import espeak, spectrogram, waveforms
from bigmodel_jax.data.audio.spec_augment import SpecAugment
from bigmodel_jax.data.audio.speech import frames_needed
from bigmodel_jax.data.audio.spoken_words import draw

RATE = 16_000


def tone(seconds=0.5, rate=RATE, hertz=440.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


@pytest.fixture
def recordings(tmp_path):
    """recordings(lines) -> the data of a manifest with these lines; a.wav is half a second of a
    tone."""
    wavfile.write(tmp_path / "a.wav", RATE, np.round(tone() * 32767).astype(np.int16))

    def data(*lines, **fields):
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (tmp_path / "train.jsonl").write_text(text + "\n")
        source = SpeechFiles(train=str(tmp_path / "train.jsonl"))
        return SpeechData(source=source, cache_dir=str(tmp_path / "cache"), max_seconds=1.0, num_mels=16, **fields)

    return data


def said(text, audio="a.wav"):
    return {"audio": audio, "text": text}


def test_a_row_holds_the_spectrogram_and_the_characters(recordings):
    data = recordings(said("Yes, no!"), said(""))
    rows = data.open("train")
    batch = rows.batch(np.arange(2), None)
    assert {name: (x.shape[1:], x.dtype.name) for name, x in batch.items()} == {
        name: (field.shape, field.dtype) for name, field in data.row().items()
    }
    assert batch["num_frames"].tolist() == [50, 50]
    assert batch["num_labels"].tolist() == [6, 0]
    assert data.text(batch["labels"][0, :6]) == "yes no"
    assert not batch["log_mel"][:, 50:].any()
    bins = batch["log_mel"][0, :50]
    np.testing.assert_allclose(bins.mean(0), 0, atol=1e-3)
    assert rows.counts()["empty transcripts"] == 1


def test_digital_silence_is_zeros_and_no_nan(recordings, tmp_path):
    wavfile.write(tmp_path / "silence.wav", RATE, np.zeros(RATE // 2, np.int16))
    batch = recordings(said("", "silence.wav")).open("train").batch(np.arange(1), None)
    assert not batch["log_mel"].any()


@pytest.mark.parametrize("form", ["24 bits", "32 bits", "8 bits", "float", "44.1 kHz", "8 kHz", "stereo"])
def test_other_forms_are_the_same_sound_and_conversions_are_said(form, tmp_path):
    rate = {"44.1 kHz": 44_100, "8 kHz": 8_000}.get(form, RATE)
    x, plain = tone(rate=rate), tone()
    path = tmp_path / "a.wav"
    if form == "24 bits":
        write_24_bits(path, x)
    else:
        kinds = {"32 bits": x * (2**31 - 1), "8 bits": 128 + 127 * x, "stereo": np.stack([x, 0 * x], 1) * 32767}
        types = {"32 bits": np.int32, "8 bits": np.uint8, "float": np.float32}
        values = kinds.get(form, x if form == "float" else x * 32767)
        wavfile.write(path, rate, np.asarray(values).astype(types.get(form, np.int16)))
    samples, converted = waveforms.read(path, RATE)
    assert converted == {
        "44.1 kHz": "44100 to 16000 Hz",
        "8 kHz": "8000 to 16000 Hz",
        "stereo": "the mean of 2 channels",
    }.get(form, "")
    assert samples.dtype == np.float32
    expected = plain / 2 if form == "stereo" else plain
    middle = slice(1000, 7000)  # the filter that changes a rate sees silence beyond both ends
    assert np.abs(samples[middle] - expected[middle]).max() < 0.02


def write_24_bits(path, x):
    import wave

    octets = np.round(x * (2**23 - 1)).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(3)
        file.setframerate(RATE)
        file.writeframes(octets)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (said("hi", "none.wav"), r"line 2: no such recording: .*none.wav"),
        (
            said("hi", "cut.wav"),
            r"line 2: .*cut.wav: truncated: finished at 9000 bytes, expected 16044 bytes from header",
        ),
        (said("hi", "head.wav"), r"line 2: .*head.wav: it is not a WAV file that can be read: "),
        (said("hi", "text.wav"), r"line 2: .*text.wav: it is not a WAV file that can be read: "),
        (said("hi", "a.mp3"), r"line 2: .*a.mp3: a .mp3 is not a WAV file; ffmpeg -i FILE FILE.wav makes one"),
        (said("hi", "long.wav"), r"line 2: 1.5 s of audio; data.max_seconds = 1 allows no more"),
        (said("hi", "nan.wav"), r"line 2: .*nan.wav: it has samples that are not finite"),
        (said("hi", "short.wav"), r"line 2: less than 10 ms of audio"),
        (said("naïve"), r"line 2: the transcript 'naïve' holds 'ï', which is not among data.characters"),
        (said("x" * 8), r"line 2: the transcript needs 15 frames, and 50 of 10 ms become 13 with data.subsampling = 4"),
        (said("a b " * 20), r"line 2: 79 characters; data.max_labels = 64 allows no more"),
        (
            {"audio": "a.wav", "txt": "hi"},
            r"line 2: no text in field 'text' \(data.source.text_field\) \(perhaps you meant 'txt'\)",
        ),
        ("[1]", r"line 2: a JSON object is needed, not list"),
    ],
    ids=[
        "missing",
        "cut",
        "head",
        "text",
        "mp3",
        "long",
        "nan",
        "short",
        "letter",
        "frames",
        "labels",
        "field",
        "list",
    ],
)
def test_a_bad_record_is_one_line_with_its_place(recordings, tmp_path, line, message):
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:9000])
    (tmp_path / "head.wav").write_bytes(whole[:30])
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "a.mp3").write_bytes(b"ID3")
    wavfile.write(tmp_path / "long.wav", RATE, np.zeros(RATE * 3 // 2, np.int16))
    wavfile.write(tmp_path / "nan.wav", RATE, np.full(RATE // 2, np.nan, np.float32))
    wavfile.write(tmp_path / "short.wav", RATE, np.zeros(100, np.int16))
    with pytest.raises(ValueError, match=message) as error:
        recordings(said("yes"), line).open("train")
    assert len(str(error.value).splitlines()) == 1


def test_bad_records_up_to_the_limit_are_skipped_and_named(recordings, caplog):
    with caplog.at_level(logging.WARNING):
        rows = recordings(said("yes"), said("hi", "none.wav"), max_bad_records=1).open("train")
    assert len(rows) == 1
    assert "no such recording" in caplog.text


def test_a_transcript_needs_the_frames_that_ctc_needs(recordings):
    """50 frames become 13, so 13 labels fit if no two neighbours are equal, and 14 do not."""
    assert [frames_needed(row) for row in ([], [1], [1, 2], [1, 1], [1, 1, 1])] == [0, 1, 2, 3, 5]
    assert len(recordings(said("abcdefghijklm")).open("train")) == 1
    with pytest.raises(ValueError, match="the transcript needs 14 frames, and 50 of 10 ms become 13"):
        recordings(said("abcdefghijkll")).open("train")


@pytest.mark.parametrize("characters", ["", "aa", "a b"])
def test_characters_that_cannot_be_are_one_line(characters):
    with pytest.raises(ValueError, match=r"data.characters = .*; it must hold each character once, and no space"):
        SpeechData(characters=characters)


# ---------------------------------------------------------------- SpecAugment


def test_masks_are_a_function_of_their_bits_and_stay_in_the_utterance():
    augment, whole = SpecAugment(time_share=1.0, time_width=10), np.ones((60, 80), np.float32)
    one, again, other = (whole.copy() for _ in range(3))
    for x, noise in ((one, 5), (again, 5), (other, 6)):
        augment(x, 40, noise)
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert one[40:].all(), "padding is not the mask's"
    bins, frames = (one[:40] == 0).all(0), (one[:40] == 0).all(1)
    assert 0 < bins.sum() <= 2 * augment.freq_width
    assert frames.sum() <= 2 * augment.time_width
    inside = (one[:40] == 0) == (bins[None] | frames[:, None])
    assert inside.all(), "whole bands and whole stretches alone"


def test_no_masks_and_masks_of_a_short_utterance():
    x = np.ones((3, 4), np.float32)
    SpecAugment(freq_masks=0, time_masks=0)(x, 3, 1)
    assert x.all()
    SpecAugment(freq_width=100, time_width=100, time_share=1.0)(x, 1, 2)
    assert x[1:].all()


def test_training_is_masked_by_its_noise_and_evaluation_is_not(recordings):
    rows = recordings(said("yes"), spec_augment=SpecAugment(freq_width=8)).open("train")
    still = rows.batch(np.zeros(1, int), None)["log_mel"]
    masked = [rows.batch(np.zeros(1, int), np.array([n], np.uint64))["log_mel"] for n in (1, 2, 1)]
    assert (masked[0] != still).any()
    assert (masked[0] != masked[1]).any()
    np.testing.assert_array_equal(masked[0], masked[2])


# ---------------------------------------------------------------- spoken words


def test_what_is_said_is_a_function_of_seed_split_and_number():
    cfg = SpokenWords(train=50, validation=50)
    train, held = ([draw(cfg, split, n) for n in range(50)] for split in ("train", "validation"))
    assert train == [draw(dataclasses.replace(cfg, train=9), "train", n) for n in range(50)]
    assert train != [draw(dataclasses.replace(cfg, seed=1), "train", n) for n in range(50)]
    variants = [{one.utterance.voice.partition("+")[2] for one in split} for split in (train, held)]
    assert not variants[0] & variants[1]
    assert all(len(one.utterance.text.split()) <= 4 for one in train)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"held_out_voices": ("f1",)}, "data.source.held_out_voices: 'f1' is among data.source.voices as well"),
        ({"slowest": 300}, "data.source.slowest = 300; it must be at most data.source.fastest = 230"),
        ({"words": ()}, "data.source.words: empty; at least one is needed"),
    ],
)
def test_voices_that_cannot_be_are_one_line(fields, message):
    with pytest.raises(ValueError, match=message):
        SpokenWords(**fields)


@pytest.mark.slow
def test_voices_speak_the_same_samples_whatever_was_said_before(tmp_path):
    cfg = SpokenWords(train=6, validation=3, silent=0.2)
    whole = dict(cfg.records("train", tmp_path, None))
    again = dict(dataclasses.replace(cfg, train=3).records("train", tmp_path, None))
    assert len(whole) == 6
    for where, record in again.items():
        np.testing.assert_array_equal(record["audio"], whole[where]["audio"])
    for record in whole.values():
        assert len(record["audio"]) > 0.3 * spectrogram.RATE
        assert 0.001 < np.abs(record["audio"]).max() <= 1
    with pytest.raises(ValueError, match=r"espeak-ng cannot say '.*' as '.*nobody'"):
        list(dataclasses.replace(cfg, voices=("nobody",), silent=0.0).records("train", tmp_path, None))


def test_elsewhere_the_systems_library_speaks_or_one_line_says_what_is_pinned(monkeypatch):
    monkeypatch.setattr(espeak.platform, "system", lambda: "Linux")
    monkeypatch.setattr(espeak.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(espeak.ctypes.util, "find_library", lambda name: f"lib{name}.so.1")
    assert espeak.library() == ("libespeak-ng.so.1", "")
    monkeypatch.setattr(espeak.ctypes.util, "find_library", lambda _: None)
    said = r"espeakng-loader==0\.2\.4 holds a library for Linux x86_64, and this machine is Linux aarch64 without a library"
    with pytest.raises(ValueError, match=said) as error:
        espeak.library()
    assert "\n" not in str(error.value)
