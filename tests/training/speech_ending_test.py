"""A run of speech recognition from its start to its page, on tones instead of words."""

import json

import numpy as np
import pytest
from scipy.io import wavfile

import runs
from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, TrainConfig
from bigmodel_jax.core.params import paths
from bigmodel_jax.core.sharding import make_mesh
from bigmodel_jax.data import SpeechData, SpeechFiles
from bigmodel_jax.data.images.image import ImageData
from bigmodel_jax.models import ConformerConfig
from bigmodel_jax.objectives import CTC
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.run import train
from bigmodel_jax.training.saved import load_weights
from bigmodel_jax.training.speech_ending import Speech

RATE = 16_000


def manifest(folder, name, num):
    """Tones of two heights, whose names are a and b, two a recording; the last one is silent."""
    rng, lines = np.random.default_rng(len(name)), []
    for n in range(num):
        text = "".join(rng.choice(list("ab"), 2)) if n < num - 1 else ""
        seconds = np.arange(RATE // 5) / RATE
        parts = [0.5 * np.sin(2 * np.pi * {"a": 400, "b": 2000}[c] * seconds) for c in text] or [0 * seconds]
        sound = np.concatenate([parts[0], np.zeros(800), *parts[1:]]) + rng.normal(
            0, 0.01, RATE // 5 * len(parts) + 800
        )
        wavfile.write(folder / f"{name}{n}.wav", RATE, sound.astype(np.float32))
        lines.append(json.dumps({"audio": f"{name}{n}.wav", "text": text}))
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / f"{name}.jsonl")


def config_of(folder, steps):
    source = SpeechFiles(train=manifest(folder, "train", 16), validation=manifest(folder, "validation", 5))
    return Config(
        model=ConformerConfig.tiny(),
        objective=CTC(),
        data=SpeechData(
            source=source, num_mels=16, max_seconds=0.6, max_labels=8, characters="abcdefghij", cache_dir=str(folder)
        ),
        optim=OptimConfig(lr=3e-3, schedule="constant"),
        train=TrainConfig(steps=steps, batch_size=8),
        eval=EvalConfig(every=steps),
        checkpoint=CheckpointConfig(every=2),
    )


@pytest.mark.slow
def test_a_run_draws_what_it_heard_and_a_resumed_one_masks_the_same(tmp_path):
    config = config_of(tmp_path, 4)
    found = train(config, tmp_path / "whole")
    assert found["eval/cer"] >= 0
    table = (tmp_path / "whole/samples/00000004.txt").read_text().splitlines()
    assert len(table) == 5
    assert "(silence)" in table[-1]
    picture = (tmp_path / "whole/samples/00000004.png").read_bytes()
    assert picture[:4] == b"\x89PNG"
    page = (tmp_path / "whole/report.html").read_text()
    assert "Word error rate" in page
    assert "00000004.png" in page

    train(config, runs.killed(tmp_path / "whole", 4, tmp_path / "parts"))
    mesh = make_mesh(config.parallel)
    whole, parts = (paths(load_weights(config, tmp_path / name, mesh)[0]) for name in ("whole", "parts"))
    for path in whole:
        np.testing.assert_array_equal(whole[path], parts[path])


def test_data_that_cannot_write_labels_is_one_line(tmp_path):
    config = Config(ConformerConfig.tiny(), CTC(), ImageData())
    with pytest.raises(ValueError, match=r"data: ImageData has no method text\(labels\), .* SpeechData has it"):
        Speech().check(config)
